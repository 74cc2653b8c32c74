"""One structured line in the log for each thing worth knowing: a JSON object, never a token or a secret."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from typing import Any

LOGGER = logging.getLogger("airflow_envoy")

# Any JWS, whole or in part. Nothing here writes one on purpose; this catches what a library's exception text
# may quote.
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_.\-]*")


def record(level: int, event: str, **fields: Any) -> None:
    """Writes one line: ``event`` and those ``fields`` that are not None.

    Control characters are escaped by JSON, so that no value can forge a line.
    """
    if not LOGGER.isEnabledFor(level):
        return
    line = json.dumps({"event": event, **{k: v for k, v in fields.items() if v is not None}}, default=str)
    LOGGER.log(level, "%s", scrub(line))


def scrub(text: str) -> str:
    """``text`` without anything that looks like a token."""
    return _TOKEN.sub("eyJ***", text)


def fault(error: BaseException) -> str:
    """What an unforeseen exception was and where it came from, without its text, which may quote anything."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__} at {' > '.join(places) or 'an unknown place'}"
