"""Tier 2, Airflow 2.10 and 2.11: `[secrets] backend = airflow_envoy.worker2.EnvoyIdentityBackend`.

As `worker`, with the same limit: it proves that somebody on this worker signed, no more. In Airflow 2 it also
serves deferrable operators: the triggerer is one process that has the key as the workers do and knows for
which task a trigger runs. The claim `airflow.tier` is then `triggerer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import worker
from .context import current_task, deferred_task
from .delegate import Delegating
from .identity import Task
from .triggerer import is_reserved

if TYPE_CHECKING:
    from .issuer import Issuer


class EnvoyIdentityBackend(worker.EnvoyIdentityBackend):
    """Adds the credentials of the running or deferred task to marked connections, wherever they come from."""

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any | None:
        """The connection ``conn_id``, with credentials if it is marked; None if there is none."""
        # Airflow 2 has no supervisor to ask: nobody is answered under the reserved name.
        return None if is_reserved(conn_id) else super().get_connection(conn_id, team_name)

    def _task(self, *, roles: bool = False) -> Task | None:
        return current_task(roles=roles) or deferred_task(roles=roles)

    def _lifetime(self, issuer: Issuer, conn_id: str) -> int:
        # A trigger keeps the headers that it got first.
        if current_task(roles=False) is None:
            return issuer.settings.deferred_identity_lifetime
        return super()._lifetime(issuer, conn_id)

    def _rest(self) -> Iterable[Any]:
        from airflow.configuration import ensure_secrets_loaded

        return (backend for backend in ensure_secrets_loaded() if not isinstance(backend, Delegating))
