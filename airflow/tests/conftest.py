"""What the tests share. Airflow is importable but not running, with a home of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_HOME = tempfile.mkdtemp(prefix="airflow-envoy-tests-")
os.environ["AIRFLOW_HOME"] = _HOME
os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{_HOME}/airflow.db"
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__API_AUTH__JWT_SECRET"] = os.urandom(48).hex()
for _name in [name for name in os.environ if name.startswith("AIRFLOW__AIRFLOW_ENVOY__")]:
    del os.environ[_name]

from airflow_envoy import issuer as issuer_module  # noqa: E402
from airflow_envoy import keys  # noqa: E402
from airflow_envoy.identity import Task  # noqa: E402
from airflow_envoy.settings import Settings  # noqa: E402


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    """A key ring with one key that signs."""
    folder = tmp_path / "keys"
    keys.create(folder, now=int(time.time()))
    return folder


@pytest.fixture
def settings_of(key_folder: Path) -> Callable[..., Settings]:
    """Makes settings with a good key ring, changed by keyword."""

    def make(**changes: str | None) -> Settings:
        usual = {"issuer": "https://airflow.test", "audiences": "orders, billing", "keys": str(key_folder)}
        return Settings.parse({**usual, **changes})

    return make


@pytest.fixture
def task() -> Task:
    return Task(
        dag_id="sales",
        task_id="load",
        run_id="manual__1",
        map_index=3,
        try_number=2,
        ti_id="0190",
        tier="server",
    )


@pytest.fixture
def no_issuer() -> Iterator[None]:
    """Forgets the process's issuer before and after."""
    issuer_module._made = None
    yield
    issuer_module._made = None


@pytest.fixture
def records() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was written to the log, as the JSON that it is. By an own handler: Airflow replaces the root's."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("airflow_envoy"), Lines()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in lines]
    logger.setLevel(level)
    logger.removeHandler(handler)


class Provider:
    """A token endpoint on a free port that does as it is told: `answer` is called with each request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes] | None] = lambda request: (
            self.token()
        )
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                request = {
                    "method": self.command,
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "body": self.rfile.read(length).decode(),
                }
                provider.requests.append(request)
                answer = provider.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = handle_one

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients here go away early
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def json(document: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"content-type": "application/json"}, json.dumps(document).encode()

    @classmethod
    def token(cls, token: str = "access-1", **changes: Any) -> tuple[int, dict[str, str], bytes]:
        document = {"access_token": token, "token_type": "Bearer", "expires_in": 300, **changes}
        return cls.json({name: value for name, value in document.items() if value is not None})


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()
