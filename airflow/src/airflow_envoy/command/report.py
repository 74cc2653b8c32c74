"""What commands print, and how they fail: text for people, one JSON document for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["DONE", "FOUND", "IMPOSSIBLE", "USAGE", "Problem", "note", "print_json", "table"]

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


def note(text: str) -> None:
    """A line for people, beside the output: on standard error."""
    print(f"airflow-envoy: {text}", file=sys.stderr)


def print_json(document: Any) -> None:
    """The whole answer of a command with `--json`."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest cell, two spaces apart."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def colours(stream: Any) -> bool:
    """Whether `stream` is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
