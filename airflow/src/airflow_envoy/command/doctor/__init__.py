"""`doctor`: everything that a marked connection needs, looked at once, with what to do about what is
wrong.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from airflow_envoy.command.doctor import local, network
from airflow_envoy.command.doctor.check import Check, Context, Finding, Level, carry_out
from airflow_envoy.command.report import DONE, FOUND, print_json, say, wants_colours

__all__ = ["checks", "prepare", "run"]

CHECKS = (
    Check("airflow", local.airflow),
    Check("settings", local.settings),
    Check("keys", local.keys),
    Check("key_permissions", local.key_permissions),
    Check("isolation", local.isolation),
    Check("plugin", local.plugin, loads_airflow=True),
    Check("api_server", network.api_server),
    Check("api_clock", network.api_clock),
    Check("access_token", network.access_token, patience=network.token_patience),
    Check("oidc_clock", network.oidc_clock),
    Check("masking", local.masking, loads_airflow=True),
    Check("all_admins", local.all_admins),
    Check("airflow_tokens", local.airflow_tokens),
    Check("backends", local.backends, loads_airflow=True),
    Check("proxy", network.proxy, loads_airflow=True),
)
CONNECTION = Check("connection", network.connection, loads_airflow=True)
ENVOY = Check("envoy", network.envoy)


def checks(args: argparse.Namespace) -> tuple[Check, ...]:
    """The checks that these arguments ask for."""
    asked = (*((CONNECTION,) if args.connection else ()), *((ENVOY,) if args.envoy else ()))
    return (*CHECKS, *asked)


def run(args: argparse.Namespace) -> int:
    """The command `doctor`."""
    context = prepare(args)
    found: list[Finding] = []
    for check in checks(args):
        findings = carry_out(check, context)
        found += findings
        if not args.json:
            for finding in findings:
                say(_line(finding))
    bad = sum(finding.level is Level.FAIL for finding in found)
    doubtful = sum(finding.level is Level.WARN for finding in found)
    if args.json:
        print_json(
            {"ok": not bad, "failed": bad, "warnings": doubtful, "findings": [f.as_json() for f in found]}
        )
    else:
        say(f"\n{bad} failed, {doubtful} to look at, {sum(f.level is Level.OK for f in found)} fine")
        unasked = [
            *(["a connection (--connection ID)"] if not args.connection else []),
            *(["Envoy (--envoy URL)"] if not args.envoy else []),
        ]
        if unasked:
            say(f"not asked for: {', '.join(unasked)}")
    return FOUND if bad else DONE


def prepare(args: argparse.Namespace) -> Context:
    """Loads Airflow's configuration and the settings, as far as they can be loaded."""
    context = Context(args)
    try:
        import airflow
        from airflow.configuration import conf

        context.conf = conf
        context.airflow_version = tuple(
            int(part) for part in airflow.__version__.split(".")[:3] if part.isdigit()
        )
    except ImportError as error:
        missing = error.name == "airflow" or str(error.name).startswith("airflow.")
        context.problem = (
            "Airflow is not installed in this Python" if missing else f"Airflow cannot be loaded: {error}"
        )
    except Exception as error:  # noqa: BLE001 - a broken airflow.cfg raises whatever it likes
        context.problem = f"Airflow cannot be loaded: {type(error).__name__}: {str(error)[:200]}"
    _read_settings(context)
    return context


def _read_settings(context: Context) -> None:
    from airflow_envoy.settings import OPTIONS, Invalid, Settings

    try:
        if context.conf is not None:
            context.settings = Settings.from_airflow()
        else:
            values = {
                option.name: os.environ.get(f"AIRFLOW__AIRFLOW_ENVOY__{option.name.upper()}")
                for option in OPTIONS
            }
            context.settings = Settings.parse(values)
        context.keys = context.settings.keys
        return
    except Invalid as error:
        context.settings_problem = str(error)
    folder = context.option("airflow_envoy", "keys") or os.environ.get("AIRFLOW__AIRFLOW_ENVOY__KEYS", "")
    context.keys = Path(folder).expanduser() if folder else None


MARKS = {Level.OK: "32", Level.SKIP: "2", Level.WARN: "33", Level.FAIL: "31"}


def _line(finding: Finding) -> str:
    level = finding.level.value.ljust(4)
    if wants_colours():
        level = f"\033[{MARKS[finding.level]}m{level}\033[0m"
    advice = f"\n     {'':15} → {finding.advice}" if finding.advice else ""
    return f"{level} {finding.check:15} {finding.text}{advice}"
