"""What commands print, and how they fail: text for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

__all__ = [
    "DONE",
    "FOUND",
    "IMPOSSIBLE",
    "USAGE",
    "Problem",
    "note",
    "only_answers",
    "print_json",
    "say",
    "table",
    "wants_colours",
]

DONE, FOUND, USAGE, IMPOSSIBLE = 0, 1, 2, 3


class Problem(Exception):
    """A command could not be carried out: what is wrong and, if known, what to do. Never holds a secret."""

    def __init__(self, message: str, advice: str = "", code: int = IMPOSSIBLE) -> None:
        super().__init__(message)
        self.message, self.advice, self.code = message, advice, code

    def report(self, as_json: bool) -> int:
        """Tells it, and returns the exit code."""
        note(self.message + (f"\n  {self.advice}" if self.advice else ""))
        if as_json:
            print_json({"error": {"message": self.message, "advice": self.advice or None}})
        return self.code


_answers: TextIO | None = None


@contextlib.contextmanager
def only_answers() -> Iterator[None]:
    """While this lasts, only `say` and `print_json` reach standard output.

    Airflow, and what it configures, logs to standard output: that goes to standard error.
    """
    global _answers  # noqa: PLW0603 - standard output is one for the process, too
    real, _answers = sys.stdout, sys.stdout
    handlers = [
        handler
        for logger in (logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict)))
        for handler in logger.handlers
        if type(handler) is logging.StreamHandler and handler.stream is real
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _answers = None
        for handler in handlers:
            handler.setStream(real)


def say(text: str) -> None:
    """A part of the answer: on standard output."""
    print(text, file=_answers or sys.stdout, flush=True)


def wants_colours() -> bool:
    """Whether the answer goes to a terminal that wants colours (https://no-color.org)."""
    stream = _answers or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """A line for people, beside the output: on standard error."""
    print(f"airflow-envoy: {text}", file=sys.stderr)


def print_json(document: Any) -> None:
    """The whole answer of a command with `--json`."""
    say(json.dumps(document, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest cell, two spaces apart."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
