"""Tier 2, Airflow 3: the worker itself asserts which task runs in it.

A secrets backend: `[workers] secrets_backend = airflow_envoy.worker.EnvoyIdentityBackend`. For where the API
server may not be touched, and for `airflow dags test`, which has no API server.

**What it proves: that somebody on this worker signed.** The backend runs in the process that runs the DAG's
code, with a key that this code can read; a DAG can therefore sign whatever it likes about itself. Give each
pool of workers (queue, team) an `issuer` and a key of its own, and let the policy say which DAGs this issuer
may speak for. The claim `airflow.tier` is `worker`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .context import current_task
from .delegate import Delegating, access_denied, call
from .identity import Task
from .refusal import Refusal
from .triggerer import EnvoyTriggererBackend, is_reserved

if TYPE_CHECKING:
    from .issuer import Issuer

log = logging.getLogger("airflow_envoy")


class EnvoyIdentityBackend(EnvoyTriggererBackend):
    """Adds the credentials of the running task to marked connections, wherever they come from.

    The connection is looked for as without this backend: in the ``delegate``, then in the rest of Airflow's
    chain. Connections without the marker are returned as they were found.

    Where no task runs (a DAG is parsed, a command runs) this only passes on to the delegate, and **the marker
    stays**: a call made there has no identity, and Envoy, which knows the marker's header, refuses it and
    says why. Without the marker it would be refused as any stranger's.

    In a triggerer it is what it inherits from: a trigger runner takes this backend, not that of `[secrets]`,
    where both are configured.
    """

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any | None:
        """The connection ``conn_id``, with credentials if it is marked; None if there is none.

        Where no task runs, what the base class knows.
        """
        if is_reserved(conn_id) or self._task() is None:
            return super().get_connection(conn_id, team_name)
        return self._finished(conn_id, self._found(conn_id, team_name))

    async def aget_connection(self, conn_id: str) -> Any | None:
        """`get_connection` for code in an event loop."""
        if is_reserved(conn_id) or self._task() is None:
            return await super().aget_connection(conn_id)
        connection = await self._afound(conn_id)
        # Signing takes a moment and the access token may have to be fetched: not in the event loop.
        return await asyncio.to_thread(self._finished, conn_id, connection)

    def _finished(self, conn_id: str, connection: Any | None) -> Any | None:
        # Here, for the sake of all the processes that load a backend and never meet a marked connection.
        from .connection import marked_extra, refuse, with_credentials

        if connection is None:
            return None
        try:
            extra = marked_extra(connection)
            if extra is None:
                return connection
            return with_credentials(
                connection,
                extra,
                self._required_task,
                lifetime=lambda issuer: self._lifetime(issuer, conn_id),
            )
        except Refusal as refusal:
            return refuse(conn_id, refusal)

    def _task(self, *, roles: bool = False) -> Task | None:
        """The task that runs here. ``roles``: with the roles of its DAG."""
        return current_task(roles=roles)

    def _required_task(self, issuer: Issuer) -> Task:
        task = self._task(roles=issuer.settings.roles)
        if task is None:
            raise Refusal("task_unknown", "the task ended while its connection was read")
        return task

    def _lifetime(self, issuer: Issuer, conn_id: str) -> int:
        return issuer.settings.lifetime(conn_id)

    def _rest(self) -> Iterable[Any]:
        """Airflow's chain of backends without those of this package."""
        from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

        return (backend for backend in ensure_secrets_backend_loaded() if not isinstance(backend, Delegating))

    def _chain(self) -> Iterable[Any]:
        """Who is asked for a connection, in this order."""
        delegate = self.delegate
        if delegate is not None:
            yield delegate
        yield from self._rest()

    def _found(self, conn_id: str, team_name: str | None) -> Any | None:
        """The connection by `_chain`, as Airflow itself goes along it."""
        final = access_denied() or ()
        for backend in self._chain():
            try:
                connection = call(backend.get_connection, team_name, conn_id=conn_id)
            except final:
                raise  # an authority said no: nobody else is asked
            except Exception:  # noqa: BLE001 - as Airflow does
                _go_on(backend)
                continue
            if connection:
                return connection
        return _by_supervisor(conn_id)

    async def _afound(self, conn_id: str) -> Any | None:
        final = access_denied() or ()
        for backend in self._chain():
            method = getattr(backend, "aget_connection", None)
            try:
                if method is None:
                    connection = await asyncio.to_thread(backend.get_connection, conn_id)
                else:
                    answer = method(conn_id)
                    connection = await answer if inspect.isawaitable(answer) else answer
            except final:
                raise
            except Exception:  # noqa: BLE001 - as Airflow does
                _go_on(backend)
                continue
            if connection:
                return connection
        return None


def _go_on(backend: Any) -> None:
    log.debug("%s failed; the next secrets backend is asked", type(backend).__name__, exc_info=True)


def _by_supervisor(conn_id: str) -> Any | None:
    """Airflow 3.0, whose chain ends before the API server: asks it as Airflow does after the chain."""
    try:
        from airflow.sdk.execution_time import context, task_runner
    except ImportError:
        return None
    convert = getattr(context, "_convert_connection_result_conn", None)  # 3.0 only
    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if convert is None or comms is None:
        return None
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection

    answer = comms.send(GetConnection(conn_id=conn_id))
    # An error is Airflow's to tell: it asks once more, and raises.
    return None if isinstance(answer, ErrorResponse) else convert(answer)
