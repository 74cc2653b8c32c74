"""The Airflow plugin, found by its entry point.

Airflow imports it in each of its processes, also in that of each task: what only the API server needs is
imported only there.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from .. import reason
from ..proxy import listeners


def identity_middleware(app: Any) -> Any:
    """`middleware.IdentityMiddleware` around ``app``."""
    from .middleware import IdentityMiddleware

    return IdentityMiddleware(app)


async def key_sets(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application `routes.key_sets`."""
    from . import routes

    await routes.key_sets(scope, receive, send)


class AirflowEnvoyPlugin(AirflowPlugin):  # type: ignore[misc]
    """Adds the identity middleware and the key sets to the API server, and to tasks the reason of a refusal
    and, if proxy mode is on, its listener.

    Airflow 2 ignores what is for the API server.
    """

    name = "airflow_envoy"
    fastapi_root_middlewares: list[Any] = [  # noqa: RUF012 - as Airflow declares it
        {"middleware": identity_middleware, "args": [], "kwargs": {}, "name": "airflow-envoy identity"}
    ]
    fastapi_apps: list[Any] = [  # noqa: RUF012
        {"app": key_sets, "url_prefix": "/airflow-envoy", "name": "airflow-envoy key sets"}
    ]
    listeners: list[Any] = [reason, *listeners()]  # noqa: RUF012
