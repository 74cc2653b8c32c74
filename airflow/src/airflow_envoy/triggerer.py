"""Deferred tasks, Airflow 3: the triggerer's own process signs for the task that it holds a trigger for.

`[secrets] backend = airflow_envoy.triggerer.EnvoyTriggererBackend`, on the triggerer; elsewhere it does no
harm and nothing.

A triggerer is two processes. The *trigger runner* runs the triggers, all of them in one event loop, without
a database. Its parent, the *supervisor*, has the database and answers the runner's questions. A trigger has
no token of its own by which the API server could tell its task. So the backend, in the runner, asks the
supervisor for the connection under a reserved name, `airflow_envoy!<trigger>!<connection>`; the backend
there looks in the database which task instance waits for that trigger, refuses unless it is `deferred`, and
signs. The key is only read in the supervisor.

**The reserved name is a boundary.** Whoever may ask for it gets the identity of any deferred task, and
everybody may ask for a connection of any name: tasks at the API server, DAG files at the DAG processor,
both answered by processes that load this backend and have the database. It is therefore answered only in a
process whose main thread is, at this moment, within a triggerer's job (`_in_supervisor`); all who can ask
that one are its trigger runner. Everywhere else there is no such connection.

A DAG chooses the names that its triggers read. So in the runner a reserved name that a trigger reads ends the
look-up: Airflow's next backend would ask the supervisor for it, which could not tell it from this one's
question. A runner with another backend (`[workers] secrets_backend` wins there) would not end it, so that its
supervisor answers nobody.

What it proves: that a trigger of this triggerer asked. Triggers are code of installed packages, not of
DAGs; but they share one process, and one of them could ask as another. The claim `airflow.tier` is
`triggerer`.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import threading
import uuid
from types import FrameType
from typing import Any

from .delegate import Delegating
from .identity import Task
from .record import fault, record
from .refusal import CODES, Refusal

RESERVED = "airflow_envoy!"
_REFUSAL = "airflow_envoy_refusal"
"""The type of the connection by which the supervisor tells the runner of a refusal: an error there would be
retried for minutes.
"""


def is_reserved(conn_id: object) -> bool:
    """Whether ``conn_id`` is a name that no connection has: no delegate and no other backend is asked for
    it.
    """
    return isinstance(conn_id, str) and conn_id.startswith(RESERVED)


class EnvoyTriggererBackend(Delegating):
    """Adds the credentials of a deferred task to the marked connections that its trigger reads."""

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any | None:
        """In the supervisor, a reserved name; in the runner, any connection; else what the delegate knows."""
        if is_reserved(conn_id):
            return _served(conn_id) if _in_supervisor() and _guards_runner() else _not_asked(conn_id)
        trigger = _trigger()
        comms = _comms()
        if trigger is None or comms is None:
            return super().get_connection(conn_id, team_name)
        return _received(conn_id, comms.send(_question(trigger, conn_id)))

    async def aget_connection(self, conn_id: str) -> Any | None:
        """`get_connection` in the runner's event loop, which must not wait for a synchronous question."""
        if is_reserved(conn_id):
            return _not_asked(conn_id)  # no supervisor asks like this
        trigger = _trigger()
        comms = _comms()
        if trigger is None or comms is None:
            return await super().aget_connection(conn_id)
        return _received(conn_id, await comms.asend(_question(trigger, conn_id)))


# In the trigger runner.


def _trigger() -> int | None:
    """The trigger that this code runs for, by what Airflow binds for its log lines; None if it runs for
    none.
    """
    structlog = sys.modules.get("structlog.contextvars")
    if structlog is None:
        return None
    trigger = structlog.get_contextvars().get("trigger_id")
    return trigger if isinstance(trigger, int) and not isinstance(trigger, bool) else None


def _comms() -> Any | None:
    """The channel to the supervisor."""
    return getattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS", None)


def _question(trigger: int, conn_id: str) -> Any:
    from airflow.sdk.execution_time.comms import GetConnection

    return GetConnection(conn_id=f"{RESERVED}{trigger}!{conn_id}")


def _not_asked(conn_id: str) -> Any | None:
    """A reserved name outside of the supervisor: there is no such connection. Where Airflow would go on and
    ask a supervisor for it, this refuses it for good.
    """
    if _comms() is None:
        return None
    from .connection import refuse

    refusal = Refusal(
        "task_unknown",
        f"names of connections that begin with `{RESERVED}` are reserved; name the connection itself",
    )
    return refuse(conn_id, refusal)


def _received(conn_id: str, answer: Any) -> Any | None:
    """The connection in the supervisor's ``answer``; None if it has none, so that Airflow goes on with its
    own chain.
    """
    from airflow.sdk.execution_time import context
    from airflow.sdk.execution_time.comms import ErrorResponse

    if answer is None or isinstance(answer, ErrorResponse):
        return None
    convert = (
        getattr(context, "_process_connection_result_conn", None) or context._convert_connection_result_conn
    )
    connection = convert(answer)
    connection.conn_id = conn_id
    if connection.conn_type == _REFUSAL:
        from .connection import refuse

        told = json.loads(connection.extra)
        return refuse(
            conn_id, Refusal(told["code"] if told["code"] in CODES else "internal", told["message"])
        )
    return connection


# In the supervisor.


def _in_supervisor() -> bool:
    """Whether this is a triggerer's supervisor: its main thread is within the triggerer's job right now.

    Not by what can be set from outside, and not by what is imported: the API server imports the triggerer
    for its health check. The supervisor's main thread waits for this answer, so its stack is where it must
    be.
    """
    if os.environ.get("_AIRFLOW_PROCESS_CONTEXT") == "client" or _comms() is not None:
        return False  # the runner: a fork, whose stack begins with its parent's
    job = getattr(sys.modules.get("airflow.jobs.triggerer_job_runner"), "TriggererJobRunner", None)
    execute = getattr(job, "_execute", None)
    if execute is None:
        return False
    code = inspect.unwrap(execute).__code__
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _guards_runner() -> bool:
    """Whether the trigger runner has this backend, which keeps reserved names from what DAGs choose."""
    from airflow.configuration import conf

    try:
        runners = conf.getimport("workers", "secrets_backend", fallback=None)
    except Exception as error:  # noqa: BLE001 - a class that cannot be imported, as Airflow wraps it
        record(logging.ERROR, "backend_unknown", option="[workers] secrets_backend", cause=fault(error))
        return False
    return not runners or (isinstance(runners, type) and issubclass(runners, EnvoyTriggererBackend))


def _served(conn_id: str) -> Any | None:
    """What the runner asked for: the connection, with the credentials of the trigger's task if it is marked.

    Raises nothing: Airflow would ask again for minutes, and every trigger waits meanwhile.
    """
    trigger, _, name = conn_id.removeprefix(RESERVED).partition("!")
    if not trigger.isdecimal() or not trigger.isascii() or len(trigger) > 18 or not name or is_reserved(name):
        return None
    try:
        return _connection(int(trigger), name)
    except Refusal as refusal:
        return _told(name, refusal, trigger)
    except Exception as error:  # noqa: BLE001 - see above
        record(logging.ERROR, "fault", cause=fault(error), trigger=trigger, connection=name)
        return _told(
            name,
            Refusal("internal", f"the triggerer could not make the identity ({type(error).__name__})"),
            trigger,
        )


def _connection(trigger: int, name: str) -> Any | None:
    from airflow.exceptions import AirflowNotFoundException
    from airflow.models.connection import Connection

    from .connection import marked_extra, with_credentials

    try:
        connection = Connection.get_connection_from_secrets(name)
    except AirflowNotFoundException:
        return None
    extra = marked_extra(connection)
    if extra is None:
        return connection
    return with_credentials(
        connection,
        extra,
        lambda issuer: _deferred(trigger, roles=issuer.settings.roles),
        lifetime=lambda issuer: issuer.settings.deferred_identity_lifetime,
    )


def _deferred(trigger: int, *, roles: bool) -> Task:
    """The task that waits for ``trigger``. Raises `Refusal` unless it is one, and `deferred`."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from .database import task_instance

    try:
        # A session of its own: the supervisor's other threads have theirs.
        with create_session(scoped=False) as session:
            query = select(TaskInstance.id).where(TaskInstance.trigger_id == trigger).limit(2)
            found = session.scalars(query).all()
    except SQLAlchemyError as error:
        record(logging.ERROR, "database_unavailable", problem=type(error).__name__, trigger=trigger)
        raise Refusal(
            "database_unavailable",
            "Airflow's database did not answer the question for the trigger's task; try again, or see the "
            "triggerer's log",
        ) from None
    if len(found) != 1:
        raise Refusal(
            "task_unknown",
            f"trigger {trigger} belongs to {'several tasks' if found else 'no task'}; "
            "only the trigger of one deferred task has an identity",
        )
    task = task_instance(uuid.UUID(str(found[0])), roles=roles, tier="triggerer")
    if task.state != "deferred":
        raise Refusal(
            "task_not_running",
            f"the task of this trigger is `{task.state}`, not `deferred`; "
            "only a trigger that is waited for has an identity",
        )
    return task


def _told(name: str, refusal: Refusal, trigger: str) -> Any:
    """The refusal as a connection that cannot be used."""
    from airflow.models.connection import Connection

    record(
        logging.ERROR, "refused", code=refusal.code, message=refusal.message, connection=name, trigger=trigger
    )
    return Connection(
        conn_id=name, conn_type=_REFUSAL, extra=json.dumps({"code": refusal.code, "message": refusal.message})
    )
