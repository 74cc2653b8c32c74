"""Every command, once: the same table becomes `python -m airflow_envoy …` and `airflow envoy …`.

It is read at every start of Airflow's own command line, so it imports nothing but the standard library; what
a
command does is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GROUPS", "Argument", "Command", "Group", "parser", "walk"]


class Argument:
    """One argument of a command, in the words of `argparse.ArgumentParser.add_argument`."""

    def __init__(self, *flags: str, **options: Any) -> None:
        self.flags = flags
        self.options = options


@dataclass(frozen=True)
class Command:
    """A command. `run` names the function `module:function` that takes the parsed arguments and returns the
    exit code.
    """

    name: str
    help: str
    run: str
    arguments: tuple[Argument, ...] = ()
    description: str = ""
    examples: tuple[str, ...] = ()

    def load(self) -> Callable[[argparse.Namespace], int]:
        """The function that carries the command out."""
        module, _, function = self.run.partition(":")
        run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), function)
        return run

    def epilog(self, prog: str) -> str:
        """Examples for the help, as they are typed after `prog`."""
        return (
            "examples:\n" + "\n".join(f"  {prog} {example}" for example in self.examples)
            if self.examples
            else ""
        )


@dataclass(frozen=True)
class Group:
    """Commands with a name of their own."""

    name: str
    help: str
    commands: tuple[Command, ...] = field(default_factory=tuple)


def seconds(text: str) -> float:
    """A span such as `90`, `90s`, `10m`, `6h`, `7d`, in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3650 * 86400:
        raise argparse.ArgumentTypeError(f"`{text}` is no span such as 90s, 10m, 6h or 7d")
    return value


JSON = Argument("--json", action="store_true", help="print one JSON document")
FOLDER = Argument(
    "--folder",
    metavar="PATH",
    help="the key ring's folder; without it, the option `keys` of section airflow_envoy",
)
SOURCES = (
    Argument(
        "--database", action="store_true", help="read Airflow's metadata database (on a host of Airflow)"
    ),
    Argument(
        "--api-server", metavar="URL", help="ask the REST API of Airflow's FAB auth manager at this base URL"
    ),
    Argument(
        "--token-file",
        metavar="FILE",
        help=(
            "file with the bearer token for --api-server, - for standard input; else the variable "
            "AIRFLOW_API_TOKEN"
        ),
    ),
    Argument("--ca-file", metavar="FILE", help="CA bundle (PEM) for --api-server"),
)

KEYS = Group(
    "keys",
    "The keys that sign Airflow identities",
    (
        Command(
            "new",
            "Make a key ring with its first key",
            "airflow_envoy.command.keys:new",
            (
                FOLDER,
                Argument("--alg", choices=("ES256", "EdDSA"), default="ES256", help="algorithm of the key"),
                JSON,
            ),
            "Makes the folder and its first key, which signs at once. ES256 is what Envoy verifies fastest. "
            "A ring that has keys is left alone: use `keys rotate`.",
            ("keys new --folder /etc/airflow-envoy/keys",),
        ),
        Command(
            "rotate",
            "Add the next key, which signs after a while",
            "airflow_envoy.command.keys:rotate",
            (
                FOLDER,
                Argument(
                    "--lead",
                    type=seconds,
                    metavar="SPAN",
                    help="time between publishing the new key and signing with it, such as 10m (the default)",
                ),
                Argument("--now", action="store_true", help="sign with the new key at once"),
                Argument(
                    "--alg",
                    choices=("ES256", "EdDSA"),
                    help="algorithm of the new key; default: that of the present one",
                ),
                JSON,
            ),
            "The new key is published at once and signs after the lead, so that Envoy knows it before it is "
            "used. "
            "The old one stays published until the last identity that it signed is over. No restart of "
            "anything.",
            ("keys rotate", "keys rotate --lead 1h", "keys rotate --now"),
        ),
        Command(
            "retire",
            "Withdraw a key that leaked",
            "airflow_envoy.command.keys:retire",
            (Argument("kid", metavar="KID", help="id of the key, as `keys list` shows it"), FOLDER, JSON),
            "The key leaves the published set at once, and its file is deleted. Envoy stops believing it "
            "at its next refresh of the keys: within the minute for which the answer may be cached.",
            (
                "keys retire 5v3PS0kWbtRHZYEyQAzWUDt8F3_Zt_PIgFQBvQeQKnM",
                "keys retire -- -an-id-that-begins-with-a-hyphen",
            ),
        ),
        Command(
            "list",
            "Show the keys and what each one is doing",
            "airflow_envoy.command.keys:show",
            (FOLDER, JSON),
            "Never shows a private key. Warns about keys that others may read and about a change that is "
            "due.",
            ("keys list", "keys list --folder /etc/airflow-envoy/keys --json"),
        ),
        Command(
            "jwks",
            "Print the public keys as a JWK set",
            "airflow_envoy.command.keys:jwks",
            (FOLDER, JSON),
            "What the API server answers at /airflow-envoy/jwks.json: for Envoy's `jwks.inline`, or a web "
            "server of your own.",
            ("keys jwks > jwks.json",),
        ),
    ),
)

DOCTOR = Command(
    "doctor",
    "Check everything that a marked connection needs",
    "airflow_envoy.command.doctor:run",
    (
        Argument(
            "--api-server",
            metavar="URL",
            help="base URL of Airflow's API server; default: api.base_url of Airflow",
        ),
        Argument("--connection", metavar="ID", help="also check this marked connection"),
        Argument(
            "--envoy",
            metavar="URL",
            help="also check that Envoy answers here; with a path, that of the filter's `status.path`",
        ),
        Argument("--ca-file", metavar="FILE", help="CA bundle (PEM) for --api-server and --envoy"),
        Argument(
            "--timeout",
            type=seconds,
            default=2.0,
            metavar="SPAN",
            help="longest time that one check may take (default 2s)",
        ),
        JSON,
    ),
    "One line for each check: OK, WARN or FAIL, what is wrong, and how to mend it. Checks are independent: "
    "one that "
    "breaks hides no other. Run it where Airflow's API server runs, as its user and with its environment.",
    ("doctor", "doctor --connection orders_api --envoy http://127.0.0.1:10000/airflow-envoy/status"),
)

IMPORT_ROLES = Command(
    "import-roles",
    "Write Airflow's roles as roles of the policy",
    "airflow_envoy.command.roles:import_roles",
    (
        *SOURCES,
        Argument(
            "--by",
            choices=("dag", "claim"),
            default="dag",
            help=(
                "dag: by the ids of the DAGs that the role may edit (default); claim: by `airflow_roles` "
                "in the identity"
            ),
        ),
        Argument(
            "--role", action="append", metavar="NAME", help="only this Airflow role; may be given again"
        ),
        Argument(
            "--merge",
            metavar="POLICY",
            help="print this policy with its roles `airflow-…` replaced (comments of YAML are lost)",
        ),
        JSON,
    ),
    "Prints the `roles` of a policy: for each Airflow role, `airflow-<role>`. A role that may edit a DAG "
    "(can_edit, by "
    "the DAG's access_control or by FAB) holds for the tasks of that DAG. YAML if PyYAML is installed, else "
    "JSON. "
    "The output is sorted and has no date, so that it can be kept in version control.",
    (
        "import-roles --database > airflow-roles.yaml",
        "import-roles --api-server https://airflow.example --token-file token.txt --json",
        "import-roles --database --by claim --merge policy.json --json",
    ),
)

CHECK_ROLES = Command(
    "check-roles",
    "Find roles that a policy names and Airflow does not have",
    "airflow_envoy.command.roles:check_roles",
    (
        Argument("policy", nargs="+", metavar="POLICY", help="policy, JSON or YAML; - for standard input"),
        *SOURCES,
        JSON,
    ),
    "Compares every `airflow_roles` of the policies with Airflow's roles. Exit code 1 if one does not exist.",
    ("check-roles policy.json --api-server https://airflow.example --token-file token.txt",),
)

GROUPS: tuple[Group | Command, ...] = (KEYS, DOCTOR, IMPORT_ROLES, CHECK_ROLES)
DESCRIPTION = "Airflow Envoy: keys, diagnosis and roles for the identities of Airflow's tasks."
EXIT_CODES = (
    "exit codes: 0 done, nothing found; 1 something was found (a failed check, a missing role); 2 wrong "
    "usage; "
    "3 it could not be done (unreadable input, unusable key ring or settings, no answer)"
)


def walk() -> Iterable[tuple[tuple[str, ...], Command]]:
    """Every command with its path, such as `("keys", "new")`."""
    for entry in GROUPS:
        if isinstance(entry, Group):
            yield from (((entry.name, command.name), command) for command in entry.commands)
        else:
            yield (entry.name,), entry


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of `prog`; the parsed arguments have the [`Command`] in `command`."""
    shape = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog=prog, description=DESCRIPTION, epilog=EXIT_CODES)
    names = top.add_subparsers(metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for path, command in walk():
        place = names
        if len(path) > 1:
            group = next(entry for entry in GROUPS if entry.name == path[0])
            if group.name not in groups:
                below = names.add_parser(
                    group.name, help=group.help, description=group.help, epilog=EXIT_CODES
                )
                groups[group.name] = below.add_subparsers(metavar="COMMAND", required=True)
            place = groups[group.name]
        one = place.add_parser(
            command.name,
            help=command.help,
            description=command.description or command.help,
            epilog=command.epilog(prog),
            formatter_class=shape,
        )
        for argument in command.arguments:
            one.add_argument(*argument.flags, **argument.options)
        one.set_defaults(command=command)
    return top
