"""Which task runs in this process, by Airflow's own context: the one place that turns it into a `Task`.

Everything here is read in the process that runs the DAG's code, so it is what that code lets us see: good
for tier 2, never for the API server, which asks its database (`database`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .identity import UNKNOWN, Task, Unknown, editors, owners

_instance: ContextVar[Any] = ContextVar("airflow_envoy_task_instance", default=None)


@contextmanager
def running(task_instance: Any) -> Iterator[None]:
    """While this lasts, ``task_instance`` is the task that runs here, if Airflow itself has no context.

    Airflow 2 calls its listeners outside of the context.
    """
    token = _instance.set(task_instance)
    try:
        yield
    finally:
        _instance.reset(token)


def current_task(*, roles: bool = True) -> Task | None:
    """The task that runs in this process; None where there is none (a DAG is parsed, a trigger runs …).

    From the context of the task if there is one, else from what Airflow binds for its log lines: those are
    the five names of the task and its id, all else stays unknown. ``roles``: whether the DAG's
    `access_control` is told.
    """
    found = _context()
    if found is not None:
        return _of_context(found, roles=roles)
    task_instance = _instance.get()
    if task_instance is not None:
        task = getattr(task_instance, "task", None)
        return _of(
            task_instance,
            task=task,
            dag=getattr(task, "dag", None),
            dag_run=_quietly(task_instance, "dag_run"),
            roles=roles,
        )
    return _of_log_variables()


def deferred_task(*, roles: bool = True) -> Task | None:
    """Airflow 2: the task for which a trigger runs here; None if none does."""
    handler = sys.modules.get("airflow.utils.log.trigger_handler")
    variable = getattr(handler, "ctx_task_instance", None)
    task_instance = variable.get(None) if variable is not None else None
    if task_instance is None or getattr(task_instance, "dag_id", None) is None:
        return None
    return _of(task_instance, task=None, dag=None, dag_run=None, roles=roles, tier="triggerer")


def _context() -> Any | None:
    """Airflow's context of the task that runs here."""
    # Nothing is imported that is not there already: in a process without it no task runs, and a secrets
    # backend must not be what loads it.
    if "airflow.sdk.execution_time.task_runner" in sys.modules:
        from airflow.sdk import get_current_context

        try:
            return get_current_context()
        except RuntimeError:
            return None
    # Airflow 2: what its own `get_current_context` reads, whose module only some DAGs load.
    contexts = getattr(sys.modules.get("airflow.models.taskinstance"), "_CURRENT_CONTEXT", None)
    return contexts[-1] if contexts else None


def _of_context(context: Any, *, roles: bool) -> Task | None:
    task_instance = context.get("ti") or context.get("task_instance")
    if task_instance is None:
        return None
    task = context.get("task")
    return _of(
        task_instance,
        task=task,
        dag=context.get("dag") or getattr(task, "dag", None),
        dag_run=context.get("dag_run"),
        roles=roles,
    )


def _of(task_instance: Any, *, task: Any, dag: Any, dag_run: Any, roles: bool, tier: str = "worker") -> Task:
    return Task(
        dag_id=str(task_instance.dag_id),
        task_id=str(task_instance.task_id),
        run_id=str(task_instance.run_id),
        map_index=_map_index(getattr(task_instance, "map_index", None)),
        try_number=int(task_instance.try_number),
        ti_id=_text(_quietly(task_instance, "id")),
        # By where this is read. `dags test` leaves what it runs `scheduled`.
        state="deferred" if tier == "triggerer" else "running",
        queue=_text(_quietly(task_instance, "queue")) or _text(getattr(task, "queue", None)),
        pool=_text(_quietly(task_instance, "pool")) or _text(getattr(task, "pool", None)),
        hostname=_text(_quietly(task_instance, "hostname")),
        owners=owners(_text(getattr(task, "owner", None))),
        tags=_tags(dag),
        roles=editors(getattr(dag, "access_control", None)) if roles and dag is not None else None,
        team=_fact(dag_run, "team_name"),
        run_type=_text(_quietly(dag_run, "run_type")),
        triggering_user_name=_fact(dag_run, "triggering_user_name"),
        tier=tier,
    )


def _of_log_variables() -> Task | None:
    """The task by what Airflow 3.2 and later bind for the log lines of its process (not of a trigger)."""
    structlog = sys.modules.get("structlog.contextvars")
    if structlog is None:
        return None
    bound = structlog.get_contextvars()
    if "trigger_id" in bound or any(
        bound.get(name) is None for name in ("dag_id", "task_id", "run_id", "try_number")
    ):
        return None
    return Task(
        dag_id=str(bound["dag_id"]),
        task_id=str(bound["task_id"]),
        run_id=str(bound["run_id"]),
        map_index=_map_index(bound.get("map_index")),
        try_number=int(bound["try_number"]),
        ti_id=_text(bound.get("ti_id")),
        state="running",
        tier="worker",
    )


def _map_index(value: Any) -> int:
    return -1 if value is None else int(value)


def _text(value: Any) -> str | None:
    """An enum of Airflow's by its value, anything else as text; None if there is none."""
    value = getattr(value, "value", value)
    return None if value is None or value == "" else str(value)


def _tags(dag: Any) -> tuple[str, ...] | None:
    """The sorted tags of a DAG; None if there is no DAG to ask."""
    tags: Iterable[Any] | None = None if dag is None else getattr(dag, "tags", ())
    return None if dag is None else tuple(sorted({str(tag) for tag in tags or ()}))


def _fact(source: Any, attribute: str) -> str | Unknown | None:
    """A fact for which None means that there is none; `UNKNOWN` where this Airflow does not have it."""
    if source is None:
        return UNKNOWN
    try:
        return _text(getattr(source, attribute))
    except Exception:  # noqa: BLE001 - no such attribute, or one that a database has to be asked for
        return UNKNOWN


def _quietly(source: Any, attribute: str) -> Any:
    """An attribute, or None: Airflow 2 loads some from its database, which may not be there for us."""
    if source is None:
        return None
    try:
        return getattr(source, attribute, None)
    except Exception:  # noqa: BLE001 - see above
        return None
