"""The middleware: adds credentials to marked connections that a running task reads from the API server.

Everything else passes untouched. Whatever goes wrong with a marked connection becomes a 403 with the reason:
a 5xx would make the task's supervisor try again for minutes, and a connection without its credentials would
be refused later, by somebody who cannot say why.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import ERROR, WARNING
from typing import Any
from urllib.parse import quote

from ..database import task_instance
from ..identity import Task
from ..issuer import Issuer
from ..keys import SigningKey
from ..marker import NAME, Marker
from ..reason import SEPARATOR, VARIABLE
from ..record import fault, record
from ..refusal import Refusal
from .caller import Callers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ROUTE = "/execution/connections/"
_VARIABLES = "/execution/variables/"
_REASON = _VARIABLES + VARIABLE
_REASON_AGE = 120.0
_REASONS = 1024
_MARKED = 4096
_RUNNING = "running"
_BODY_LIMIT = 1024 * 1024
"""Bytes. A larger answer is no connection that could be marked: `extra` is a column of text."""
_THREADS = 8
"""Fewer than the connections that one process has to its database (15 by default), of which Airflow needs
some itself.
"""
_DATABASE_PATIENCE = 5.0
_WORD = NAME.lower().rpartition("-")[2].encode()


class IdentityMiddleware:
    """ASGI middleware around Airflow's whole API."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._callers = Callers()
        self._reasons = _Reasons()
        self._marked: set[str] = set()
        self._running: set[asyncio.Task[_Facts]] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="airflow-envoy")
        # Not here: a secret that comes by a command, or a key ring on a slow disk, must not delay the API
        # server.
        threading.Thread(target=_prepare, name="airflow-envoy-start", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        route = _route(scope) if scope["type"] == "http" and scope["method"] == "GET" else ""
        if route.startswith(_REASON) and await self._reason(scope, send, route):
            return
        if not is_connection(route):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        whole = scope["headers"]
        headers = [(name, value) for name, value in whole if name.lower() != b"accept-encoding"]
        conn_id = route[len(_ROUTE) :]
        # If the connection was marked when it was last read, look the task up while Airflow reads it.
        early = self._start(headers) if conn_id in self._marked else None
        # What an inner layer compressed could not be read. The outer ones have seen the request already.
        scope["headers"] = headers
        try:
            await self._app(scope, receive, answer.take)
        finally:
            scope["headers"] = whole
        if not answer.is_held:
            return
        body = await self._judged(conn_id, headers, answer, early)
        if body is None:
            await answer.release()
        else:
            await answer.replace(*body)

    async def _judged(
        self, conn_id: str, headers: Headers, answer: _Answer, early: asyncio.Task[_Facts] | None
    ) -> tuple[int, bytes] | None:
        """What replaces Airflow's answer; None if it passes as it is."""
        connection = _read(answer.body)
        if connection is None:
            return None
        started = time.monotonic()
        facts = _Facts()
        try:
            extra = _extra(connection["extra"])
            marker = Marker.take(extra)
            if marker is None:
                self._marked.discard(conn_id)
                return None
            self._remember(conn_id)
            issuer = Issuer.current()
            if (
                issuer.settings.has_provider
                and connection.get("conn_type") == "http"
                and connection.get("login")
            ):
                raise Refusal(
                    "marker_invalid",
                    "the marked connection has a login, which HTTP clients would send instead of the access "
                    "token: remove login and password from it",
                )
            facts = await (early or self._facts(headers))
            credentials = await _credentials(issuer, facts, marker, issuer.settings.lifetime(conn_id))
            connection["extra"] = json.dumps({**extra, **credentials})
            return 200, json.dumps(connection).encode()
        except Refusal as error:
            refusal, cause = error, None
        except Exception as error:  # noqa: BLE001 - never a 5xx; the task is told that it is not its own fault
            refusal = _fault()
            cause = fault(error)
        ti_id = facts.ti_id or await self._caller(headers)
        if ti_id is not None:
            self._reasons.put(ti_id, conn_id, refusal.text)
        record(
            ERROR if cause else WARNING,
            "refused",
            code=refusal.code,
            message=refusal.message,
            cause=cause,
            conn_id=conn_id,
            ti_id=ti_id and str(ti_id),
            seconds=round(time.monotonic() - started, 3),
        )
        return 403, json.dumps({"detail": refusal.detail()}).encode()

    def _remember(self, conn_id: str) -> None:
        if len(self._marked) >= _MARKED:
            self._marked.clear()  # it is only about speed
        self._marked.add(conn_id)

    def _start(self, headers: Headers) -> asyncio.Task[_Facts]:
        task = asyncio.ensure_future(self._facts(headers))
        self._running.add(task)  # the event loop itself holds no reference
        task.add_done_callback(self._running.discard)
        return task

    async def _facts(self, headers: Headers) -> _Facts:
        """Who is calling, and with which key to sign. Never raises: a refusal is one of the facts."""
        facts = _Facts()
        try:
            facts.ti_id = await self._callers.caller(headers)
            work = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, facts.ti_id)
            facts.task, facts.key = await asyncio.wait_for(work, _DATABASE_PATIENCE)
        except (asyncio.TimeoutError, TimeoutError):
            facts.refusal = Refusal(
                "database_unavailable",
                f"Airflow's database did not answer within {_DATABASE_PATIENCE:g} s; try again",
            )
        except Refusal as refusal:
            facts.refusal = refusal
        except Exception as error:  # noqa: BLE001 - see above
            record(ERROR, "fault", cause=fault(error))
            facts.refusal = _fault()
        return facts

    async def _caller(self, headers: Headers) -> uuid.UUID | None:
        try:
            return await self._callers.caller(headers)
        except Refusal:
            return None

    async def _reason(self, scope: Scope, send: Send, route: str) -> bool:
        """Tells a task why it was refused, as the variable that `reason.py` asks for; False if it was not."""
        asked, separator, conn_id = route.partition(SEPARATOR)
        if asked != _REASON:
            return False
        ti_id = await self._caller(scope["headers"])
        if ti_id is None:
            return False
        text = self._reasons.get(ti_id, conn_id if separator else None)
        if text is None and separator and is_connection(_ROUTE + conn_id):
            text = await self._judged_again(scope, route, conn_id)
        if text is None:
            return False
        body = json.dumps({"key": route.removeprefix(_VARIABLES), "value": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return True

    async def _judged_again(self, scope: Scope, route: str, conn_id: str) -> str | None:
        """Why the caller is refused a connection: it was another process of the API server that said so."""
        path: str = scope["path"]
        path = path.removesuffix(route) + _ROUTE + conn_id
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        read = {
            **scope,
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": b"",
            "headers": headers,
        }
        answer = _Answer(_nowhere)
        try:
            await self._app(read, _NoBody().receive, answer.take)
        except Exception:  # noqa: BLE001 - Airflow's own, for its own route to show: this one asks for a variable
            return None
        judged = await self._judged(conn_id, headers, answer, None) if answer.is_held else None
        if judged is None or judged[0] != 403:
            return None
        message = json.loads(judged[1])["detail"]["message"]
        return str(message)


async def _nowhere(message: Message) -> None:
    """Sends to nobody."""


class _NoBody:
    """What is received of a request that has no body, from a client that does not go away."""

    def __init__(self) -> None:
        self._received = False

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        if self._received:
            # Who listens for the end of the connection is cancelled when the answer is there. To come back at
            # once would have it ask again for ever, and nothing else would run.
            await asyncio.Event().wait()
        self._received = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def _credentials(issuer: Issuer, facts: _Facts, marker: Marker, lifetime: int) -> dict[str, str]:
    try:
        token = await issuer.token_async(marker, lifetime=lifetime)
    except Refusal:
        facts.check()  # what is wrong with the task itself is the better reason
        raise
    task, key = facts.check()
    return issuer.headers_with(token, task, marker, lifetime=lifetime, key=key)


def _look_up(ti_id: uuid.UUID) -> tuple[Task, SigningKey | None]:
    """What has to be read, from the database and at times from disk. Runs in a thread."""
    issuer = Issuer.current()
    task = task_instance(ti_id, roles=issuer.settings.roles)
    return task, issuer.signing_key() if task.state == _RUNNING else None


def _fault() -> Refusal:
    return Refusal("internal", "no identity because of a fault in the API server: see its log")


@dataclass(slots=True)
class _Facts:
    """About the caller; `refusal` if they could not be had."""

    ti_id: uuid.UUID | None = None
    task: Task | None = None
    key: SigningKey | None = None
    refusal: Refusal | None = None

    def check(self) -> tuple[Task, SigningKey]:
        """The task and the key, if the task may have an identity. Raises `Refusal`."""
        if self.refusal is not None or self.task is None:
            raise self.refusal or _fault()
        if self.task.state != _RUNNING or self.key is None:
            raise Refusal(
                "task_not_running",
                f"the task instance is in state `{self.task.state}`: only a running one gets an identity",
            )
        return self.task, self.key


class _Answer:
    """Airflow's answer to a connection read, held back until it is whole if it may be a marked one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._size = 0
        self._complete = False
        self._passing = False

    @property
    def is_held(self) -> bool:
        """Whether the whole answer is here, and none of it was sent."""
        return self._complete and not self._passing

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._held[1:])

    async def take(self, message: Message) -> None:
        """Airflow's `send`."""
        if self._passing:
            await self._send(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.body" and len(self._held) > 1:
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._size <= _BODY_LIMIT:
                return
        elif message["type"] == "http.response.start" and len(self._held) == 1 and _is_plain_json(message):
            return
        await self.release()

    async def release(self) -> None:
        """Sends what was held back, as it came; what follows passes at once."""
        self._passing = True
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    async def replace(self, status: int, body: bytes) -> None:
        """Sends ``body`` in place of Airflow's, with its headers: a refreshed task token is among them."""
        start = self._held[0]
        dropped = (b"content-length", b"cache-control", b"etag", b"transfer-encoding")
        headers = [(name, value) for name, value in start.get("headers", ()) if name.lower() not in dropped]
        headers += [(b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        self._passing = True
        await self._send({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Reasons:
    """The last refusal of each task instance, for a while and bounded. Used from the event loop only."""

    def __init__(self) -> None:
        self._texts: OrderedDict[uuid.UUID, tuple[float, str, str]] = OrderedDict()

    def put(self, ti_id: uuid.UUID, conn_id: str, text: str) -> None:
        self._texts[ti_id] = (time.monotonic() + _REASON_AGE, conn_id, text)
        self._texts.move_to_end(ti_id)
        while len(self._texts) > _REASONS:
            self._texts.popitem(last=False)

    def get(self, ti_id: uuid.UUID, conn_id: str | None) -> str | None:
        """Of the connection ``conn_id``; None: of any."""
        until, of, text = self._texts.get(ti_id, (0.0, "", ""))
        return text if time.monotonic() < until and conn_id in (None, of) else None


def _route(scope: Scope) -> str:
    """The path below `[api] base_url`, as Airflow's router sees it; empty outside of the execution API."""
    path: str = scope["path"]
    if "/execution/" not in path:
        return ""
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def is_connection(route: str) -> bool:
    """Whether ``route`` is `/execution/connections/{id}`, exactly.

    It is decoded already. As in Airflow's router, an id does not reach over a slash, encoded or not.
    """
    return route.startswith(_ROUTE) and len(route) > len(_ROUTE) and "/" not in route[len(_ROUTE) :]


def _is_plain_json(start: Message) -> bool:
    if start["status"] != 200:
        return False
    kind, encoding = b"", b""
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-type":
            kind = value
        elif name.lower() == b"content-encoding":
            encoding = value
    return kind.split(b";")[0].strip().lower() == b"application/json" and encoding in (b"", b"identity")


def _read(body: bytes) -> dict[str, Any] | None:
    """The connection, if it may be a marked one."""
    # The marker's name can only be there in letters or in JSON's escapes: what has neither is not even
    # parsed.
    if _WORD not in body.lower() and b"\\u" not in body:
        return None
    try:
        connection = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return connection if isinstance(connection, dict) and isinstance(connection.get("extra"), str) else None


def _extra(text: str) -> dict[str, Any]:
    """The connection's `extra`. Raises `Refusal` where it cannot be read but was meant to be marked."""
    try:
        extra = json.loads(text)
    except (ValueError, RecursionError):
        extra = None
    if isinstance(extra, dict):
        return extra
    if NAME.lower() in text.lower():
        raise Refusal("marker_invalid", f"the connection's extra has `{NAME}` in it, but is no JSON object")
    return {}


def _prepare() -> None:
    """Reads settings and keys, and fetches the usual access token, before the first task asks."""
    try:
        issuer = Issuer.current()
        issuer.jwks()
        issuer.tokens.token()
    except Refusal:
        return  # it was logged where it happened, and every marked connection will say so
    except Exception as error:  # noqa: BLE001 - the API server starts in any case
        record(ERROR, "not_prepared", cause=fault(error))
