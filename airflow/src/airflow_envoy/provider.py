"""What Airflow's providers manager asks for: the configuration section, and what else this package brings."""

from __future__ import annotations

from typing import Any

from . import __version__
from .settings import OPTIONS, SECTION


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata. `sensitive` options are what makes Airflow honour their `_CMD` and `_SECRET`
    forms.
    """
    return {
        "package-name": "airflow-envoy",
        "name": "Airflow Envoy",
        "description": "Gives every Airflow task a verifiable identity at Envoy, without a change to a DAG.",
        "versions": [__version__],
        # `airflow envoy …`, from Airflow 3.2 on; older ones do not look at it.
        "cli": ["airflow_envoy.command.cli.airflow_commands"],
        "config": {
            SECTION: {"description": "Airflow Envoy: the identity of tasks at Envoy.", "options": _options()}
        },
    }


def _options() -> dict[str, dict[str, Any]]:
    return {
        option.name: {
            "description": option.meaning,
            "version_added": "0.1.0",
            "type": option.kind,
            "example": option.example,
            "default": option.default,
            **({"sensitive": True} if option.sensitive else {}),
        }
        for option in OPTIONS
    }
