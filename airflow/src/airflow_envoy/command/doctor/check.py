"""What a check is, and how checks are run: each by itself, each bounded in time."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_envoy.record import scrub

if TYPE_CHECKING:
    from airflow_envoy.settings import Settings

__all__ = ["Check", "Context", "Finding", "Level", "carry_out", "fail", "ok", "skip", "warn"]


class Level(str, Enum):
    """How bad a finding is. Only `FAIL` makes the doctor's exit code 1."""

    OK = "OK"
    SKIP = "SKIP"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line: what was found, and if it is not well, what to do about it. Never holds a token or a
    secret.
    """

    level: Level
    text: str
    advice: str = ""
    check: str = ""

    def as_json(self) -> dict[str, Any]:
        """Its object in the JSON output."""
        return {
            "check": self.check,
            "level": self.level.value,
            "text": self.text,
            "advice": self.advice or None,
        }


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, text)


def skip(text: str) -> Finding:
    """Does not apply here, or cannot be known here."""
    return Finding(Level.SKIP, text)


def warn(text: str, advice: str) -> Finding:
    """Works, but should be looked at."""
    return Finding(Level.WARN, text, advice)


def fail(text: str, advice: str) -> Finding:
    """Does not work, or is not safe."""
    return Finding(Level.FAIL, text, advice)


@dataclass
class Context:
    """What checks are given. Durations in seconds."""

    args: argparse.Namespace
    conf: Any = None
    """Airflow's configuration; None if Airflow is not installed here or cannot be loaded."""
    airflow_version: tuple[int, ...] = ()
    problem: str = ""
    """Why Airflow cannot be loaded."""
    settings: Settings | None = None
    settings_problem: str = ""
    keys: Path | None = None
    """The key ring's folder, also when other settings are wrong."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What one check learned and another one needs, such as an answer of the API server."""

    @property
    def timeout(self) -> float:
        """The longest time of one check."""
        return float(self.args.timeout)

    def option(self, section: str, name: str, default: str = "") -> str:
        """An option of Airflow; `default` without Airflow, or where this Airflow does not know it."""
        if self.conf is None:
            return default
        return str(self.conf.get(section, name, fallback=None) or default)

    def switch(self, section: str, name: str) -> bool:
        """A yes-or-no option of Airflow; no without Airflow, or where this Airflow does not know it."""
        return self.conf is not None and bool(self.conf.getboolean(section, name, fallback=False))


@dataclass(frozen=True)
class Check:
    """One thing that is looked at. `run` gives one finding or, rarely, several."""

    name: str
    run: Callable[[Context], Iterable[Finding]]
    loads_airflow: bool = False
    """Whether it imports large parts of Airflow, which takes its time on a small machine: then it may take
    [`LOADING`].
    """
    patience: Callable[[Context], float] = lambda context: context.timeout
    """The longest time that it may take otherwise, in seconds."""


LOADING = 30.0
"""Seconds that a check may take that imports Airflow's plugins or models."""


def carry_out(check: Check, context: Context) -> list[Finding]:
    """The findings of one check. One that raises, or gives no answer in time, is a finding itself.

    The check runs in a thread of its own, that is left behind if it hangs (a name server, a mount).
    """
    found: list[Finding] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.extend(check.run(context))
        except BaseException as error:  # noqa: BLE001 - a check that breaks must not hide the others
            raised.append(error)

    limit = LOADING if check.loads_airflow else check.patience(context)
    thread = threading.Thread(target=run, name=f"check {check.name}", daemon=True)
    thread.start()
    # A little more than what the check itself gives its connections, so that it can say what was slow.
    thread.join(limit + 0.25)
    if thread.is_alive():
        findings = [
            fail(
                f"no answer within {limit:g} s",
                "something that it asks hangs: a name server, a proxy, a network file system",
            )
        ]
    elif raised:
        findings = [
            fail(
                f"the check itself broke: {type(raised[0]).__name__}: {str(raised[0])[:200]}",
                "please report this",
            )
        ]
    else:
        findings = found
    return [Finding(f.level, scrub(f.text), scrub(f.advice), check.name) for f in findings]
