"""A secrets backend around another one: what every backend here has in common.

Airflow takes one custom backend. Who has one already (Vault, a cloud's parameter store) names it as
`delegate`, with its arguments as `delegate_kwargs`; it keeps answering for connections, variables and
configuration as before.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

try:
    from airflow.sdk.bases.secrets_backend import BaseSecretsBackend
except ImportError:  # Airflow 2, 3.0 and 3.1
    from airflow.secrets import BaseSecretsBackend

from .record import fault, record

if TYPE_CHECKING:
    Connection = Any


class Delegating(BaseSecretsBackend):  # type: ignore[misc, unused-ignore]
    """Passes everything on to ``delegate``; without one, knows nothing.

    :param delegate: class of the backend to pass on to, as its import path. None: there is none.
    :param delegate_kwargs: its arguments; a JSON object, or one as text.

    Airflow makes backends while it reads its own configuration: nothing is imported, read or connected
    before the first question. Airflow 3.0 and 3.1 also make one anew for each question of a task.
    """

    def __init__(
        self, delegate: str | None = None, delegate_kwargs: dict[str, Any] | str | None = None, **unknown: Any
    ) -> None:
        super().__init__()
        if unknown:
            names = ", ".join(f"`{name}`" for name in sorted(unknown))
            raise ValueError(
                f"airflow-envoy: the secrets backend knows `delegate` and `delegate_kwargs`, not {names}"
            )
        if isinstance(delegate_kwargs, str):
            delegate_kwargs = json.loads(delegate_kwargs) if delegate_kwargs.strip() else None
        if delegate_kwargs is not None and not isinstance(delegate_kwargs, dict):
            raise ValueError("airflow-envoy: `delegate_kwargs` of the secrets backend must be a JSON object")
        if delegate_kwargs and not delegate:
            raise ValueError("airflow-envoy: the secrets backend has `delegate_kwargs` without a `delegate`")
        self._class_path = delegate or None
        self._arguments = delegate_kwargs or {}
        self._made: Any = None

    @property
    def delegate(self) -> Any | None:
        """The other backend, made at the first question; None if none is configured."""
        if self._made is None and self._class_path is not None:
            try:
                # Two threads may both make one, as if it were configured directly; the later stays.
                self._made = self._make(self._class_path)
            except Exception as error:
                # Airflow only tells at the level `debug` that a backend failed, and asks the next one.
                record(logging.ERROR, "delegate_failed", delegate=self._class_path, cause=fault(error))
                raise
        return self._made

    def _make(self, class_path: str) -> Any:
        module, _, name = class_path.rpartition(".")
        made = getattr(importlib.import_module(module), name)(**self._arguments)
        connection_class = getattr(self, "_connection_class", None)
        if connection_class is not None and hasattr(made, "_set_connection_class"):
            made._set_connection_class(connection_class)
        return made

    # What Airflow asks. The signatures are those of Airflow 3.2 and later; before, nobody passes `team_name`.

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        found: str | None = self._ask("get_conn_value", team_name, conn_id=conn_id)
        return found

    def get_conn_uri(self, conn_id: str) -> str | None:
        found: str | None = self._ask("get_conn_uri", None, conn_id=conn_id)
        return found

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        found: str | None = self._ask("get_variable", team_name, key=key)
        return found

    def get_config(self, key: str) -> str | None:
        found: str | None = self._ask("get_config", None, key=key)
        return found

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Connection | None:
        return self._ask("get_connection", team_name, conn_id=conn_id)

    async def aget_connection(self, conn_id: str) -> Connection | None:
        return await self._aask("aget_connection", "get_connection", conn_id)

    async def aget_variable(self, key: str) -> str | None:
        found: str | None = await self._aask("aget_variable", "get_variable", key)
        return found

    def _ask(self, name: str, team_name: str | None, **arguments: Any) -> Any:
        delegate = self.delegate
        if delegate is None:
            return None
        return call(getattr(delegate, name), team_name, **arguments)

    async def _aask(self, name: str, name_of_sync: str, argument: str) -> Any:
        delegate = self.delegate
        if delegate is None:
            return None
        method = getattr(delegate, name, None)
        if method is None:
            return await asyncio.to_thread(getattr(delegate, name_of_sync), argument)
        answer = method(argument)
        return await answer if inspect.isawaitable(answer) else answer


def call(method: Callable[..., Any], team_name: str | None, **arguments: Any) -> Any:
    """Calls a backend's ``method``, with ``team_name`` only if it takes one: backends older than Airflow
    3.2 do not.
    """
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return method(**arguments)
    if "team_name" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return method(team_name=team_name, **arguments)
    return method(**arguments)


def access_denied() -> type[Exception] | None:
    """Airflow's exception by which a backend's refusal is final; None before Airflow 3.2.2, where there is
    none.
    """
    try:
        from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied
    except ImportError:
        return None
    final: type[Exception] = AirflowSecretsBackendAccessDenied
    return final
