"""`airflow envoy …`: the commands as Airflow's command line wants them (Airflow 3.2 and newer, provider key
`cli`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_envoy.command import arguments

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

__all__ = ["airflow_commands"]

PROG = "airflow envoy"


def airflow_commands() -> list[CLICommand]:
    """The group `envoy`. Airflow calls this at every start of its command line."""
    from airflow.cli.cli_config import GroupCommand

    return [
        GroupCommand(
            name="envoy",
            help="Airflow Envoy: keys, diagnosis and roles",
            description=arguments.DESCRIPTION,
            subcommands=tuple(_entry(entry) for entry in arguments.GROUPS),
            epilog=arguments.EXIT_CODES,
        )
    ]


def _entry(entry: arguments.Group | arguments.Command) -> Any:
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    if isinstance(entry, arguments.Group):
        return GroupCommand(
            name=entry.name, help=entry.help, subcommands=tuple(_entry(c) for c in entry.commands)
        )
    return ActionCommand(
        name=entry.name,
        help=entry.help,
        description=entry.description or None,
        func=_function(entry),
        args=tuple(Arg(flags=argument.flags, **argument.options) for argument in entry.arguments),
        epilog=entry.epilog(PROG) or None,
    )


def _function(command: arguments.Command) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        from airflow_envoy.command import carry_out

        # Airflow ignores what a command returns.
        if code := carry_out(command, args):
            raise SystemExit(code)

    run.__name__ = command.name.replace("-", "_")
    return run
