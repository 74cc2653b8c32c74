"""The commands: `python -m airflow_envoy …`, and `airflow envoy …` from Airflow 3.2 on.

Exit codes are stable: 0 done and nothing found, 1 something was found, 2 wrong usage, 3 it could not be done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from airflow_envoy.command import arguments
from airflow_envoy.command.report import DONE, FOUND, IMPOSSIBLE, USAGE, Problem, only_answers

__all__ = ["DONE", "FOUND", "IMPOSSIBLE", "USAGE", "carry_out", "main"]

PROG = "python -m airflow_envoy"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` and returns the exit code; wrong usage raises `SystemExit(2)`."""
    args = arguments.parser(PROG).parse_args(argv)
    return carry_out(args.command, args)


def carry_out(command: arguments.Command, args: argparse.Namespace) -> int:
    """Runs one command and returns its exit code. What a user can cause is told in words, never by a
    traceback.
    """
    from airflow_envoy.refusal import Refusal

    as_json = bool(getattr(args, "json", False))
    real = sys.stdout
    try:
        with only_answers():
            return command.load()(args)
    except Problem as problem:
        return problem.report(as_json)
    except Refusal as refusal:
        return Problem(f"{refusal.message} [{refusal.code}]").report(as_json)
    except BrokenPipeError:
        # Whoever read our output has enough of it. What is left in the buffer must not raise at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), real.fileno())
        return DONE
    except KeyboardInterrupt:
        return Problem("interrupted").report(False)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Problem(f"{where}{error.strerror or error}").report(as_json)
