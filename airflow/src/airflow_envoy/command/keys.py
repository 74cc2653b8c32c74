"""`keys …`: the key ring on disk. Needs neither Airflow nor any setting but the folder."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, TypeVar

from airflow_envoy import keys as ring
from airflow_envoy.command.report import DONE, USAGE, Problem, note, print_json, say, table

__all__ = [
    "DEFAULT_LEAD",
    "OLD",
    "Warned",
    "course",
    "exposure",
    "folder_of",
    "jwks",
    "new",
    "retire",
    "rotate",
    "show",
    "state",
]

DEFAULT_LEAD = 600
"""Seconds between publishing a key and signing with it: more than the filter's greatest default `refresh` (5
m).
"""
OLD = 365 * 86400
"""Seconds after which a key that signs, and that nothing follows, is worth a word."""

_T = TypeVar("_T")


def new(args: argparse.Namespace) -> int:
    """The command `keys new`."""
    folder = folder_of(args)
    entry = _try(lambda: ring.create(folder, now=int(time.time()), alg=args.alg))
    if args.json:
        print_json({"folder": str(folder), "key": entry.as_json()})
        return DONE
    say(f"made {folder} with the {entry.alg} key {entry.kid}, which signs from now on")
    say(f"next: set `keys = {folder}` in section [airflow_envoy]; only Airflow's API server may read it:")
    say(f"  chown -R <user of the API server> {folder}")
    return DONE


def rotate(args: argparse.Namespace) -> int:
    """The command `keys rotate`."""
    if args.now and args.lead is not None:
        raise Problem("--now and --lead exclude each other", code=USAGE)
    folder, now = folder_of(args), int(time.time())
    lead = 0 if args.now else DEFAULT_LEAD if args.lead is None else int(args.lead)
    # A key that waits is known to verifiers already; one that is made now and signs at once is not.
    known = {entry.kid for entry in _try(lambda: ring.read(folder))}
    entry = _try(lambda: ring.rotate(folder, now=now, lead=lead, alg=args.alg))
    if args.json:
        print_json({"folder": str(folder), "key": entry.as_json()})
    elif lead:
        say(f"the {entry.alg} key {entry.kid} is published, and signs from {_when(entry.signs_from)}")
    else:
        say(f"the {entry.alg} key {entry.kid} signs from now on")
    if not lead and entry.kid not in known:
        note(
            "this key was not published before: calls may be refused (identity_key_unknown) for some seconds"
        )
    return DONE


def retire(args: argparse.Namespace) -> int:
    """The command `keys retire`."""
    folder = folder_of(args)
    successor = _try(lambda: ring.retire(folder, args.kid, now=int(time.time())))
    if args.json:
        print_json(
            {
                "folder": str(folder),
                "retired": args.kid,
                "successor": successor.as_json() if successor else None,
            }
        )
        return DONE
    say(f"the key {args.kid} is no longer published and its file is deleted")
    if successor:
        say(f"the {successor.alg} key {successor.kid} signs in its place from now on")
    say(
        "Envoy stops believing the old key when it next reads the key set (the filter's `refresh`, at most "
        "a minute "
        "as the answer is cached); restart Envoy to be sure at once"
    )
    return DONE


def show(args: argparse.Namespace) -> int:
    """The command `keys list`."""
    folder, now = folder_of(args), int(time.time())
    entries = _try(lambda: ring.read(folder))
    states = {entry.kid: state(entry, entries, now) for entry in entries}
    warned = [str(one) for one in (*exposure(folder), *course(folder, entries, now))]
    if args.json:
        listed = [{**entry.as_json(), "state": states[entry.kid]} for entry in entries]
        print_json({"folder": str(folder), "keys": listed, "warnings": warned})
        return DONE
    rows = [
        (
            entry.kid,
            entry.alg,
            states[entry.kid],
            _when(entry.signs_from),
            _when(entry.published_until) if entry.published_until is not None else "-",
        )
        for entry in entries
    ]
    say(table(("KID", "ALG", "STATE", "SIGNS FROM", "PUBLISHED UNTIL"), rows))
    for text in warned:
        note(text)
    return DONE


def jwks(args: argparse.Namespace) -> int:
    """The command `keys jwks`."""
    folder = folder_of(args)
    _try(lambda: ring.read(folder))
    print_json(ring.KeyRing(folder).jwks(time.time()))
    return DONE


def state(entry: ring.Entry, entries: tuple[ring.Entry, ...], now: float) -> str:
    """What a key is doing: `signing`, `next` (published, signs later), `published` (signed before),
    `over`.
    """
    if not entry.is_published(now):
        return "over"
    if entry.signs_from > now:
        return "next"
    return "signing" if entry == ring.signer(list(entries), now) else "published"


class Warned(NamedTuple):
    """Something about a ring that an administrator should know, and what to do about it (empty: nothing)."""

    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}" if self.advice else self.text


def exposure(folder: Path) -> list[Warned]:
    """Who else may read or replace a key of the ring. Raises `OSError`."""
    told = [
        Warned(
            f"{path} can be read by others than its owner",
            f"chmod 600 {path}; if a task could read it, `keys retire` it",
        )
        for path in ring.exposed(folder)
    ]
    if folder.stat().st_mode & 0o022:
        told.append(Warned(f"{folder} can be written by others than its owner", f"chmod 700 {folder}"))
    return told


def course(folder: Path, entries: tuple[ring.Entry, ...], now: float) -> list[Warned]:
    """What is to come for the ring, and what is missing."""
    published = [entry for entry in entries if entry.is_published(now)]
    told = [
        Warned(f"the key {entry.kid} has no file in {folder}", f"bring it, or `keys retire {entry.kid}`")
        for entry in published
        if not (folder / f"{entry.kid}.pem").exists()
    ]
    signing = ring.signer(list(entries), now)
    following = [entry for entry in published if entry.signs_from > now]
    if signing is None:
        told.append(Warned("no key may sign now", "`keys rotate --now`"))
    elif not following and signing.published_until is not None:
        until = _when(signing.published_until)
        told.append(Warned(f"the signing key ends at {until} and no next key follows", "`keys rotate`"))
    elif not following and now - signing.signs_from > OLD:
        age = int(now - signing.signs_from) // 86400
        told.append(Warned(f"the signing key is {age} days old and no next key follows", "`keys rotate`"))
    for entry in following:
        when, left = _when(entry.signs_from), _span(entry.signs_from - now)
        told.append(Warned(f"the key {entry.kid} is about to sign: from {when}, in {left}"))
    return told


def folder_of(args: argparse.Namespace) -> Path:
    """The key ring's folder: `--folder`, or the setting `keys`. Raises [`Problem`]."""
    text = args.folder or setting_keys()
    if not text:
        raise Problem(
            "which key ring?",
            "give --folder PATH, or set `keys` in section [airflow_envoy] (AIRFLOW__AIRFLOW_ENVOY__KEYS)",
            code=USAGE,
        )
    return Path(text).expanduser().absolute()


def setting_keys() -> str | None:
    """The setting `keys`; None if it is not set. Airflow is asked only if the environment does not say it:
    that takes seconds.
    """
    if text := os.environ.get("AIRFLOW__AIRFLOW_ENVOY__KEYS"):
        return text
    try:
        from airflow.configuration import conf
    except ImportError:
        return None
    except Exception as error:  # noqa: BLE001 - a broken airflow.cfg raises whatever it likes
        raise Problem(
            f"Airflow's configuration cannot be read: {type(error).__name__}", "give --folder PATH"
        ) from None
    text = conf.get("airflow_envoy", "keys", fallback=None)
    return str(text) if text else None


def _try(act: Callable[[], _T]) -> _T:
    try:
        return act()
    except ring.KeysError as error:
        raise Problem(str(error)) from None


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
