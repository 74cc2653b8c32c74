"""Why a task got no identity, in the task's own log.

Airflow tells a task that its connection was refused, but not why: the supervisor drops the text of a 403. So
the API server keeps it for a while, and where this package is installed on the workers too, this listener
asks for it when a task has failed, through the channel that tasks have: as the Airflow variable
`VARIABLE!<connection>`, which the API server's middleware answers to the very task that was refused. Where
another process of the API server answers, which has not kept it, that one judges the connection once more.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from airflow.listeners import hookimpl

VARIABLE = "airflow_envoy_refusal"
SEPARATOR = "!"
_LOGGER = logging.getLogger("airflow_envoy")
# By name: they have moved between Airflow's versions. The first since 3.3; before that, a refused connection
# is not found.
_ERRORS = frozenset({"AirflowSecretsBackendAccessDenied", "AirflowNotFoundException"})
_CONNECTION = re.compile(r"connection '([^'/]+)'|conn_id `([^`/]+)`")


@hookimpl  # type: ignore[untyped-decorator]
def on_task_instance_failed(task_instance: Any, error: Any) -> None:
    """Writes the reason to the task's log if the task failed because the API server refused a marked
    connection.
    """
    refusal = _refusal(error) if _in_task() else None
    if refusal is None:
        return
    named = _CONNECTION.search(str(refusal))
    reason = kept((named[1] or named[2]) if named else None)
    if reason is not None:
        _LOGGER.error("%s", reason)
    else:
        _LOGGER.info(
            "If this connection is marked for Airflow Envoy, the API server's log says why it was refused: "
            "look for the event `refused` and the ti_id %s",
            getattr(task_instance, "id", "of this task instance"),
        )


def kept(conn_id: str | None) -> str | None:
    """Why the API server refuses this process's task the connection ``conn_id`` (None: any); None if it does
    not.
    """
    from airflow.sdk import Variable

    name = VARIABLE if conn_id is None else f"{VARIABLE}{SEPARATOR}{conn_id}"
    reason = Variable.get(name, default=None)
    return reason if isinstance(reason, str) and reason.startswith("airflow-envoy: ") else None


def _in_task() -> bool:
    """Whether this is a task's own process, of Airflow 3: the API server and others call listeners too."""
    return hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS")


def _refusal(error: Any) -> BaseException | None:
    seen = 0
    while isinstance(error, BaseException) and seen < 16:
        if type(error).__name__ in _ERRORS:
            # A worker's own refusal says why itself.
            return None if str(error).startswith("airflow-envoy: ") else error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None
