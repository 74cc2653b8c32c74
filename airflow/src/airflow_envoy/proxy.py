"""Proxy mode: raw HTTP calls of a task (requests, httpx, urllib, curl) carry its identity too.

A listener in the task's process, switched on by `[airflow_envoy] proxy_connection`. When a task starts it
reads that connection, as a hook would: whoever mints for hooks mints for this (the API server, or the
worker's backend). Its host and port are Envoy's, and the credentials become those of the proxy in the
variables that HTTP clients look at:

    http_proxy=http://<access token, or the word airflow>:<identity>@<host>:<port>

Clients then send `Proxy-Authorization: Basic ...`, which Envoy's filter takes apart (its
`proxy_authorization`). The variables hold for everything that the task's process calls, and its children;
`NO_PROXY` exempts Airflow's API server, Envoy's own host, which hooks call themselves, and what
`[airflow_envoy] no_proxy` names. They go when the task ends.

**Lifetime.** The credentials are renewed in the background before they expire, for clients that look at the
environment for each call: requests, urllib, aiohttp, a new httpx client, a new child process. A child
process that runs for longer than the identity is valid keeps what it started with, and so does an httpx
client that is kept. That is why these identities live longer than others (`[airflow_envoy]
proxy_identity_lifetime`, where they are signed). Airflow 3.0 and 3.1 and `dags test` have no channel that a
second thread may use: there, nothing is renewed.

**Without credentials nothing goes out unseen.** If the connection cannot be read the variables name a proxy
that does not exist, and the reason stands in the task's log. To go on without them would send the calls
directly to where they lead, past Envoy, whenever the network lets them; to fail the task would fail those
that make no such call. It is no wall either way: a DAG can unset a variable. The wall is the network, and
Envoy.
"""

from __future__ import annotations

import base64
import binascii
import contextvars
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from .record import fault, record, scrub
from .refusal import Refusal
from .settings import SECTION

PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
EXEMPTIONS = ("NO_PROXY", "no_proxy")
NOWHERE = "http://no-identity-see-the-log-of-the-task.airflow-envoy.invalid:1"
"""The proxy of a task whose credentials could not be had: RFC 6761 lets the name never exist; a client's
error quotes it.
"""
NOBODY = "airflow"
"""The user in the proxy's URL where there is no access token."""

_NAME = "the connection of `[airflow_envoy] proxy_connection`"
_LEAST_WAIT = 2.0
_RETRY = 5.0


def options() -> tuple[str | None, str]:
    """`proxy_connection` (None: proxy mode is off) and `no_proxy`, as this host has them.

    Not by `Settings`, which is complete only where identities are signed.
    """
    from airflow.configuration import conf

    connection = (conf.get(SECTION, "proxy_connection", fallback=None) or "").strip()
    return connection or None, conf.get(SECTION, "no_proxy", fallback=None) or ""


def listeners() -> list[Any]:
    """What the plugin registers as listeners: this module, if proxy mode is on."""
    try:
        connection, _ = options()
    except Exception as error:  # noqa: BLE001 - a plugin that raises is not loaded at all
        record(logging.ERROR, "proxy_off", cause=fault(error))
        return []
    return [sys.modules[__name__]] if connection else []


# Airflow's hooks. Airflow 2 and 3 call them with more than these arguments, by name.

try:
    from airflow.listeners import hookimpl
except ImportError:  # without Airflow, for the tests of what is below

    def hookimpl(*arguments: Any, **_: Any) -> Any:
        """Marks nothing."""
        return arguments[0] if arguments else hookimpl


@hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    """Sets the variables. Raises nothing: Airflow would print a traceback and go on."""
    start(task_instance)


@hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Takes the variables back."""
    stop()


@hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def on_task_instance_failed(previous_state: Any, task_instance: Any) -> None:
    """Takes the variables back; also before a retry."""
    stop()


@hookimpl(optionalhook=True)  # type: ignore[untyped-decorator, unused-ignore]
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """Takes the variables back."""
    stop()


@hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def before_stopping(component: Any) -> None:
    """Takes the variables back: the last that Airflow 3 calls, also for a task that is deferred or
    rescheduled.
    """
    stop()


# What they do.

_current: Proxy | None = None


def start(task_instance: Any) -> None:
    """From here on the raw HTTP calls of this process are ``task_instance``'s."""
    global _current  # noqa: PLW0603 - the environment is one for the process, and so is this
    stop()
    try:
        conn_id, exempt = options()
        if conn_id is None:
            return
        hosts = exemptions(os.environ, airflow_urls(), exempt)
        _current = Proxy(reader(conn_id, task_instance), hosts)
        _current.start()
    except Exception as error:  # noqa: BLE001 - see `on_task_instance_running`
        record(logging.ERROR, "proxy_failed", cause=fault(error))


def stop() -> None:
    """Takes the variables back, if there are any."""
    global _current
    proxy, _current = _current, None
    if proxy is not None:
        proxy.stop()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the variables are made of."""

    scheme: str
    host: str
    port: int
    token: str | None
    identity: str

    def __repr__(self) -> str:
        return f"Credentials({self.address})"

    @property
    def address(self) -> str:
        """Envoy's, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The value of the variables."""
        user = quote(self.token or NOBODY, safe="")
        scheme, _, rest = self.address.partition("://")
        return f"{scheme}://{user}:{quote(self.identity, safe='')}@{rest}"

    @property
    def secrets(self) -> Iterable[str]:
        """All that must not be seen in a log, in the forms in which a client may write it."""
        basic = base64.b64encode(f"{self.token or NOBODY}:{self.identity}".encode()).decode("ascii")
        yield from (self.identity, basic)
        if self.token:
            yield self.token

    @property
    def expires(self) -> float | None:
        """Unix time at which the first of the two expires; None if neither says so."""
        return min((at for at in map(_expiry, (self.identity, self.token)) if at is not None), default=None)

    @staticmethod
    def of(connection: Any) -> Credentials:
        """Reads them from the connection that was minted. Raises `Refusal`."""
        try:
            extra = json.loads(connection.extra or "{}")
        except ValueError:
            extra = None
        headers = {str(k).lower(): v for k, v in extra.items()} if isinstance(extra, dict) else {}
        identity, authorization = headers.get("x-airflow-identity"), headers.get("authorization")
        if not isinstance(identity, str) or not identity:
            what = (
                "nobody replaced its marker: the plugin is not active on the API server (or a secrets "
                "backend or AIRFLOW_CONN_ on this worker hides the connection from it)"
                if "x-airflow-envoy" in headers
                else 'its extra has no marker; write {"X-Airflow-Envoy": "on"}'
            )
            raise Refusal("marker_invalid", f"{_NAME} has no identity: {what}")
        token = None
        if authorization is not None:
            scheme, _, token = str(authorization).partition(" ")
            if scheme.lower() != "bearer" or not token or ":" in token:
                raise Refusal("token_refused", f"{_NAME} has an access token that no proxy's user can be")
        if not connection.host or not connection.port:
            raise Refusal("settings_invalid", f"{_NAME} needs a host and a port: Envoy's")
        scheme = connection.schema or "http"
        if scheme not in ("http", "https"):
            raise Refusal("settings_invalid", f"{_NAME} must have the schema http or https")
        return Credentials(scheme, str(connection.host), int(connection.port), token, identity)


class Proxy:
    """The variables of one task.

    :param read: reads the connection; may raise anything.
    :param exempt: the value of `NO_PROXY`.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        exempt: str,
        *,
        environment: Any = os.environ,
        clock: Callable[[], float] = time.time,
        mask: Callable[[str], None] | None = None,
        renewable: Callable[[], bool] | None = None,
    ) -> None:
        self._read = read
        self._exempt = exempt
        self._environment = environment
        self._clock = clock
        self._mask = mask or _mask
        self._renewable = renewable or channel_is_shared_safely
        self._before: dict[str, str | None] = {}
        self._ours: dict[str, str] = {}
        self._lock = threading.Lock()  # around the variables only, never around a read
        self._stopped = threading.Event()

    def start(self) -> None:
        """Sets the variables, and renews them from now on."""
        self._before = {name: self._environment.get(name) for name in (*PROXIES, *EXEMPTIONS)}
        credentials: Credentials | None = None
        try:
            connection = self._read()
            self._spare(connection)
            credentials = Credentials.of(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, the task's log says it
            record(
                logging.ERROR,
                "proxy_refused",
                message=f"raw HTTP calls of this task will fail, for want of an identity: {_reason(error)}",
            )
        self._set(credentials.url if credentials else NOWHERE, credentials)
        if credentials is None:
            return
        expires = credentials.expires
        record(
            logging.INFO,
            "proxy_set",
            proxy=credentials.address,
            no_proxy=self._exempt or None,
            until=int(expires) if expires is not None else None,
        )
        if expires is None or not self._renewable():
            return
        # In a copy of this context, so that a backend on this worker knows the task there too.
        run = contextvars.copy_context().run
        threading.Thread(
            target=run, args=(self._renew, expires), name="airflow-envoy-proxy", daemon=True
        ).start()

    def stop(self) -> None:
        """Puts the variables back to what they were, except those that the task has changed itself."""
        with self._lock:
            self._stopped.set()
            _forget_opener()
            for name, ours in self._ours.items():
                if self._environment.get(name) != ours:
                    continue
                before = self._before[name]
                if before is None:
                    del self._environment[name]
                else:
                    self._environment[name] = before
            self._ours = {}

    def _spare(self, connection: Any) -> None:
        """Exempts Envoy's own host: a hook's connection that leads there would be asked of Envoy as a proxy,
        for Envoy's address in place of the `Host` that the connection names.
        """
        host = getattr(connection, "host", None)
        if isinstance(host, str) and host:
            self._exempt = ",".join(dict.fromkeys([*filter(None, self._exempt.split(",")), host]))

    def _set(self, url: str, credentials: Credentials | None) -> None:
        for secret in credentials.secrets if credentials else ():
            self._mask(secret)  # before anything can log it
        values = dict.fromkeys(PROXIES, url)
        if self._exempt:
            values |= dict.fromkeys(EXEMPTIONS, self._exempt)
        with self._lock:
            if self._stopped.is_set():
                return
            _forget_opener()
            for name, value in values.items():
                # One that the task has changed since is the task's.
                if self._environment.get(name) == self._ours.get(name, self._before[name]):
                    self._environment[name] = self._ours[name] = value

    def _renew(self, expires: float) -> None:
        told = False
        wait = self._wait(expires)
        while not self._stopped.wait(wait):
            try:
                credentials = Credentials.of(self._read())
            except Exception as error:  # noqa: BLE001 - see `start`
                # What is there stays: Envoy refuses it once it has expired, and says so.
                wait = _RETRY
                if not told and not self._stopped.is_set():
                    told = True
                    record(
                        logging.WARNING,
                        "proxy_refused",
                        message=f"the credentials of raw HTTP calls could not be renewed: {_reason(error)}",
                        until=int(expires),
                    )
                continue
            told = False
            self._set(credentials.url, credentials)
            if credentials.expires is None:
                return
            expires = credentials.expires
            wait = self._wait(expires)

    def _wait(self, expires: float) -> float:
        """Until two thirds of the rest are over: time for several more tries."""
        return min(max((expires - self._clock()) * 2 / 3, _LEAST_WAIT), threading.TIMEOUT_MAX)


def reader(conn_id: str, task_instance: Any) -> Callable[[], Any]:
    """How the connection is read in this Airflow."""
    if "airflow.sdk.execution_time.task_runner" in sys.modules:
        from airflow.sdk import Connection

        return lambda: Connection.get(conn_id)

    from airflow.hooks.base import BaseHook

    from .context import running

    def read() -> Any:
        with running(task_instance) if task_instance is not None else nullcontext():
            return BaseHook.get_connection(conn_id)

    return read


def channel_is_shared_safely() -> bool:
    """Whether a second thread may ask the supervisor while the task does.

    Airflow 3.2 and later guard the channel with a lock; 3.0 and 3.1 do not, nor does the channel of `dags
    test`. Airflow 2 has none.
    """
    task_runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    if task_runner is None:
        return True
    return hasattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "_thread_lock")


def airflow_urls() -> list[str]:
    """Where Airflow's own API server is, as far as this host is told; and, where a worker signs, the OIDC
    provider: by Envoy it would be asked for a token with credentials that need one.
    """
    from airflow.configuration import conf

    return [
        url
        for section, option in (
            ("core", "execution_api_server_url"),
            ("api", "base_url"),
            ("webserver", "base_url"),
            (SECTION, "token_url"),
            (SECTION, "oidc_issuer"),
        )
        if (url := conf.get(section, option, fallback=None))
    ]


def exemptions(environment: Any, urls: Iterable[str], more: str) -> str:
    """The value of `NO_PROXY`: what it was, the hosts of ``urls``, and ``more`` (hosts separated by
    commas).
    """
    names: list[str] = []
    for text in (environment.get("NO_PROXY"), environment.get("no_proxy"), more):
        names += [name for part in (text or "").split(",") if (name := part.strip())]
    for url in urls:
        try:
            host = urlsplit(url).hostname
        except ValueError:
            continue
        if host:
            names.append(host)
    return ",".join(dict.fromkeys(names))


def _forget_opener() -> None:
    """Lets `urllib.request.urlopen` look at the environment again, which it only does for its first call.

    Before the environment is changed: what urllib would make of it now is then what it did make, unless the
    task has installed an opener of its own, which stays.
    """
    module = sys.modules.get("urllib.request")
    opener = getattr(module, "_opener", None)
    if module is not None and opener is not None and _shape(opener) == _shape(module.build_opener()):
        module.install_opener(None)


def _shape(opener: Any) -> list[Any]:
    return [(type(handler), getattr(handler, "proxies", None)) for handler in opener.handlers]


def _mask(secret: str) -> None:
    from .connection import mask

    mask(secret)


def _reason(error: Exception) -> str:
    """Why the connection could not be read: in the API server's own words, which Airflow drops."""
    text = str(error) or type(error).__name__
    if not isinstance(error, Refusal) and "airflow.sdk.execution_time.task_runner" in sys.modules:
        with suppress(Exception):
            from .reason import kept

            text = kept(options()[0]) or text
    return scrub(text)


def _expiry(token: str | None) -> float | None:
    """The `exp` of a JWT, unverified: it only says when to ask for another one."""
    parts = (token or "").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expires, bool) or not isinstance(expires, (int, float)) or not math.isfinite(expires):
        return None
    return float(expires)
