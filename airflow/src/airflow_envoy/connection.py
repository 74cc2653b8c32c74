"""A marked connection in the hands of a secrets backend: read it, give it its headers, or refuse it so that
it is noticed.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .delegate import access_denied
from .identity import Task
from .issuer import Issuer, apply
from .marker import AUTHORIZATION, IDENTITY, NAME
from .record import fault, record
from .refusal import Refusal


def marked_extra(connection: Any) -> dict[str, Any] | None:
    """The ``extra`` of a connection that has the marker, parsed; None of any other.

    Raises `Refusal` where it cannot be read but was meant to be marked. Not by the connection's own
    `extra_dejson`: that one masks by asking the supervisor, which a trigger's event loop must not do.
    """
    text = getattr(connection, "extra", None)
    # The marker's name is there in letters or in JSON's escapes: what has neither is not even parsed.
    if not isinstance(text, str) or (NAME.lower() not in text.lower() and "\\u" not in text):
        return None
    try:
        extra = json.loads(text)
    except (ValueError, RecursionError):
        extra = None
    if isinstance(extra, dict):
        return extra if any(name.lower() == NAME.lower() for name in extra) else None
    if NAME.lower() in text.lower():
        raise Refusal("marker_invalid", f"the connection's extra has `{NAME}` in it, but is no JSON object")
    return None


def with_credentials(
    connection: Any,
    extra: dict[str, Any],
    task_of: Callable[[Issuer], Task],
    *,
    lifetime: Callable[[Issuer], int | None],
) -> Any:
    """A copy of ``connection`` whose ``extra`` has the credentials of a task in place of the marker.

    ``extra`` is what `marked_extra` returned. ``task_of`` and ``lifetime`` are asked when the issuer is
    there. Raises `Refusal`, whatever goes wrong.
    """
    try:
        issuer = Issuer.current()
        enriched = apply(extra, lambda: task_of(issuer), issuer, lifetime=lifetime(issuer))
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
        record(logging.ERROR, "fault", cause=fault(error))
        raise Refusal(
            "internal",
            f"the identity could not be made ({type(error).__name__}); the line `fault` above says more",
        ) from None
    if enriched is None:
        return connection
    if connection.conn_type == "http" and connection.login and AUTHORIZATION in enriched:
        raise Refusal(
            "marker_invalid",
            "the marked connection has a login, which HTTP clients would send instead of the access token: "
            "remove login and password from it",
        )
    mask(enriched.get(IDENTITY))
    mask(str(enriched.get(AUTHORIZATION, "")).removeprefix("Bearer "))
    return with_extra(connection, enriched)


def with_extra(connection: Any, extra: dict[str, Any]) -> Any:
    """A copy of ``connection`` with another ``extra``: a backend may keep the object that it returned."""
    text = json.dumps(extra)
    if hasattr(type(connection), "__attrs_attrs__"):  # the Task SDK's
        import attrs

        return attrs.evolve(connection, extra=text)
    return type(connection)(
        conn_id=connection.conn_id,
        conn_type=connection.conn_type,
        description=getattr(connection, "description", None),
        host=connection.host,
        login=connection.login,
        password=connection.password,
        schema=connection.schema,
        port=connection.port,
        extra=text,
    )


def refuse(conn_id: str, refusal: Refusal, **fields: Any) -> Any:
    """Ends the look-up of a marked connection with the reason for it in the task's log.

    Airflow catches what a backend raises and asks the next one. Since 3.2.2 it has one exception that it
    lets through, which is raised here. Before, this returns a connection that cannot be used: Airflow hands
    it to the hook, and the hook's first look at it raises.
    """
    record(logging.ERROR, "refused", code=refusal.code, message=refusal.message, connection=conn_id, **fields)
    final = access_denied()
    if final is not None:
        raise final(refusal.text) from None
    return RefusedConnection(conn_id, refusal.text)


class RefusedConnection:
    """A connection that was refused: every use of it raises, with the reason.

    It does not raise for what Airflow itself reads while it hands the connection over, within the `try`
    that would swallow it: `conn_id` and `get_uri`, and in Airflow 3 `password` and `extra`, which are None.
    """

    def __init__(self, conn_id: str, reason: str) -> None:
        self.conn_id = conn_id
        self._reason = reason
        with suppress(ImportError):
            import airflow.sdk  # noqa: F401

            self.password = None
            self.extra = None

    def get_uri(self) -> str:
        """For Airflow's cache of a DAG processor: names nothing that could be called."""
        return "airflow-envoy-refused://"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # `copy`, `pickle` and the like look for these
        from airflow.exceptions import AirflowException

        raise AirflowException(self._reason)


def mask(secret: str | None) -> None:
    """Has Airflow replace ``secret`` with asterisks in what it logs, here and in the supervisor."""
    if not secret:
        return
    for module in (
        "airflow.sdk.log",
        "airflow.sdk.execution_time.secrets_masker",
        "airflow.utils.log.secrets_masker",
    ):
        with suppress(ImportError, AttributeError):
            importlib.import_module(module).mask_secret(secret)
            return
