"""Tier 2, Airflow 2.10 and 2.11: `[secrets] backend = airflow_envoy.worker2.EnvoyIdentityBackend`.

As `worker`, with the same limit: it proves that somebody on this worker signed, no more. In Airflow 2 it is also all that
serves deferrable operators: the triggerer knows for which task a trigger runs, and has the key as the workers do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import worker
from .context import current_task, deferred_task
from .delegate import Delegating
from .identity import Task
from .issuer import Issuer


class EnvoyIdentityBackend(worker.EnvoyIdentityBackend):
    """Adds the credentials of the running or deferred task to marked connections, wherever they come from."""

    def _task(self, issuer: Issuer | None) -> Task | None:
        roles = issuer is not None and issuer.settings.roles
        return current_task(roles=roles) or deferred_task(roles=roles)

    def _lifetime(self, issuer: Issuer) -> int | None:
        """A trigger keeps the headers that it got first."""
        if current_task(roles=False) is None and deferred_task(roles=False) is not None:
            return issuer.settings.deferred_identity_lifetime
        return None

    def _rest(self) -> Iterable[Any]:
        from airflow.configuration import ensure_secrets_loaded

        return (backend for backend in ensure_secrets_loaded() if not isinstance(backend, Delegating))
