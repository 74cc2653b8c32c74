"""The Airflow plugin, found by its entry point. Airflow imports it in each of its processes, so it imports
little.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from ..proxy import listeners
from .middleware import IdentityMiddleware
from .routes import key_sets


class AirflowEnvoyPlugin(AirflowPlugin):  # type: ignore[misc]
    """Adds the identity middleware and the key sets to Airflow's API server (Airflow 2 ignores both), and to
    the processes of tasks, if proxy mode is on, its listener.
    """

    name = "airflow_envoy"
    fastapi_root_middlewares: list[Any] = [  # noqa: RUF012 - as Airflow declares it
        {"middleware": IdentityMiddleware, "args": [], "kwargs": {}, "name": "airflow-envoy identity"}
    ]
    fastapi_apps: list[Any] = [  # noqa: RUF012
        {"app": key_sets, "url_prefix": "/airflow-envoy", "name": "airflow-envoy key sets"}
    ]
    listeners: list[Any] = listeners()
