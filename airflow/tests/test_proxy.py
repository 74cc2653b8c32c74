"""Proxy mode: the variables, their renewal, and what real clients make of them."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import logging
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from airflow_envoy import proxy
from airflow_envoy.access_token import AccessTokens
from airflow_envoy.proxy import NOWHERE, PROXIES, Credentials, Proxy, exemptions
from airflow_envoy.refusal import Refusal


def token(lifetime: float, **claims: Any) -> str:
    return jwt.encode({"exp": int(time.time() + lifetime), **claims}, "k" * 32, algorithm="HS256")


def connection(identity: Any, access: str | None = None, **fields: Any) -> Any:
    extra = {"X-Airflow-Identity": identity} | ({"Authorization": f"Bearer {access}"} if access else {})
    values = {"host": "127.0.0.1", "port": 8080, "schema": None, "extra": json.dumps(extra)} | fields
    return SimpleNamespace(**values)


def wait_for(condition: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


@pytest.fixture
def made():
    """Makes proxies that do not outlive the test."""
    proxies: list[Proxy] = []

    def make(read: Any, exempt: str = "", **options: Any) -> tuple[Proxy, dict[str, str], list[str]]:
        environment: dict[str, str] = options.pop("environment", {})
        masked: list[str] = []
        one = Proxy(
            read,
            exempt,
            environment=environment,
            mask=masked.append,
            renewable=options.pop("renewable", lambda: True),
            **options,
        )
        proxies.append(one)
        return one, environment, masked

    yield make
    for one in proxies:
        one.stop()


# The variables.


def test_the_proxys_user_is_the_access_token_and_its_password_the_identity(made):
    identity, access = token(60), token(60)
    one, environment, masked = made(lambda: connection(identity, access))
    one.start()
    assert {environment[name] for name in PROXIES} == {f"http://{access}:{identity}@127.0.0.1:8080"}
    basic = base64.b64encode(f"{access}:{identity}".encode()).decode()
    assert set(masked) == {identity, access, basic}


def test_without_an_access_token_the_user_is_the_word_airflow(made):
    identity = token(60)
    one, environment, masked = made(lambda: connection(identity, schema="https", host="::1"))
    one.start()
    assert environment["https_proxy"] == f"https://airflow:{identity}@[::1]:8080"
    assert base64.b64encode(f"airflow:{identity}".encode()).decode() in masked


def test_an_opaque_access_token_is_escaped(made):
    one, environment, _ = made(lambda: connection("i.d.x", "a+/~=="))
    one.start()
    assert environment["http_proxy"] == "http://a%2B%2F~%3D%3D:i.d.x@127.0.0.1:8080"


def test_the_variables_are_put_back_at_the_end(made):
    before = {"http_proxy": "http://corporate:3128", "NO_PROXY": "internal", "PATH": "/bin"}
    one, environment, _ = made(lambda: connection(token(60)), "internal,api", environment=dict(before))
    one.start()
    assert environment["http_proxy"] != before["http_proxy"]
    assert environment["NO_PROXY"] == environment["no_proxy"] == "internal,api,127.0.0.1"
    one.stop()
    assert environment == before
    one.stop()
    assert environment == before


def test_what_the_task_changes_itself_stays_the_tasks(made):
    one, environment, _ = made(lambda: connection(token(60)))
    one.start()
    environment["http_proxy"] = "http://mine:1"
    del environment["HTTPS_PROXY"]
    one._set("http://renewed:1", None)
    assert environment["http_proxy"] == "http://mine:1"
    assert "HTTPS_PROXY" not in environment
    assert environment["https_proxy"] == "http://renewed:1"
    one.stop()
    assert environment == {"http_proxy": "http://mine:1"}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (connection(None), "marker_invalid"),
        (connection(5), "marker_invalid"),
        (connection("i", extra='{"X-Airflow-Envoy": "on"}'), "marker_invalid"),
        (connection("i", extra=None), "marker_invalid"),
        (connection("i", extra="[]"), "marker_invalid"),
        (connection("i", extra="{"), "marker_invalid"),
        (connection("i", host=None), "settings_invalid"),
        (connection("i", port=None), "settings_invalid"),
        (connection("i", schema="socks5"), "settings_invalid"),
        (connection("i", "a:b"), "token_refused"),
    ],
)
def test_without_an_identity_nothing_goes_out_unseen(made, caplog, found, code):
    one, environment, masked = made(lambda: found, "api")
    one.start()
    assert {environment[name] for name in PROXIES} == {NOWHERE}
    assert environment["NO_PROXY"].split(",") == ["api", *([found.host] if found.host else [])]
    assert f"[{code}]" in caplog.text
    assert masked == []
    one.stop()
    assert environment == {}


def test_a_marker_that_nobody_replaced_is_explained(made, caplog):
    one, _, _ = made(lambda: connection("i", extra='{"x-airflow-envoy": "on"}'))
    one.start()
    assert "the plugin is not active on the API server" in caplog.text


def test_a_connection_that_cannot_be_read_is_explained(made, caplog):
    def read() -> Any:
        raise PermissionError("airflow-envoy: the task is over [task_not_running]")

    one, environment, _ = made(read)
    one.start()
    assert environment["http_proxy"] == NOWHERE
    assert "the task is over [task_not_running]" in caplog.text


def test_no_credential_is_shown_or_logged(made, caplog):
    caplog.set_level(logging.DEBUG)
    identity, access = token(60), "opaque-access-token"
    one, _, _ = made(lambda: connection(identity, access))
    one.start()
    assert '"proxy": "http://127.0.0.1:8080"' in caplog.text
    shown = caplog.text + repr(Credentials.of(connection(identity, access)))
    assert identity not in shown
    assert "eyJ" not in shown
    assert access not in shown


# Renewal.


def test_credentials_are_renewed_before_they_expire(made, monkeypatch):
    monkeypatch.setattr(proxy, "_LEAST_WAIT", 0.05)
    reads: list[str] = []

    def read() -> Any:
        reads.append(token(0, n=len(reads)))
        return connection(reads[-1])

    one, environment, masked = made(read)
    one.start()
    wait_for(lambda: len(reads) > 3)
    wait_for(lambda: reads[2] in masked)
    one.stop()
    assert environment == {}
    count = len(reads)
    time.sleep(0.2)
    assert len(reads) <= count + 1  # one that was under way
    assert environment == {}


@pytest.mark.parametrize(
    ("identity", "access", "least", "most"),
    [(600, None, 390, 400), (600, 90, 55, 60), (1, None, 2, 2), (-5, None, 2, 2)],
)
def test_the_first_of_the_two_to_expire_decides_when(identity, access, least, most):
    found = Credentials.of(connection(token(identity), token(access) if access else None))
    one = Proxy(lambda: None, "", environment={})
    assert least <= one._wait(found.expires) <= most


def test_a_failed_renewal_is_told_once_and_the_old_credentials_stay(made, monkeypatch, caplog):
    monkeypatch.setattr(proxy, "_LEAST_WAIT", 0.02)
    monkeypatch.setattr(proxy, "_RETRY", 0.02)
    first, last = token(1), token(900)
    answers = [
        connection(first),
        *[Refusal("token_unavailable", "the provider is away")] * 4,
        connection(last),
    ]

    def read() -> Any:
        found = answers.pop(0)
        if isinstance(found, Refusal):
            assert environment["http_proxy"].endswith(f":{first}@127.0.0.1:8080")
            raise found
        return found

    one, environment, _ = made(read)
    one.start()
    wait_for(lambda: last in environment["http_proxy"])
    assert caplog.text.count("the provider is away [token_unavailable]") == 1


@pytest.mark.parametrize("access", ["opaque", "a.b.c", "a.e30.c", "a." + "W10" + ".c"])
def test_what_does_not_say_when_it_expires_is_not_renewed(made, access):
    before = set(threading.enumerate())
    one, environment, _ = made(lambda: connection("not-a-jws", access))
    one.start()
    assert set(threading.enumerate()) <= before
    assert environment["http_proxy"] != NOWHERE


def test_a_channel_that_two_threads_cannot_share_is_not_used_by_two(made, monkeypatch):
    before = set(threading.enumerate())
    one, _, _ = made(lambda: connection(token(60)), renewable=lambda: False)
    one.start()
    assert set(threading.enumerate()) <= before

    task_runner = SimpleNamespace(SUPERVISOR_COMMS=SimpleNamespace())
    monkeypatch.setitem(proxy.sys.modules, "airflow.sdk.execution_time.task_runner", task_runner)
    assert not proxy.channel_is_shared_safely()
    task_runner.SUPERVISOR_COMMS._thread_lock = threading.Lock()
    assert proxy.channel_is_shared_safely()


def test_airflows_channel_has_the_lock_that_is_looked_for():
    comms = pytest.importorskip("airflow.sdk.execution_time.comms", reason="needs Airflow 3")
    assert "_thread_lock" in {attribute.name for attribute in comms.CommsDecoder.__attrs_attrs__}


# NO_PROXY and the settings.


def test_airflows_own_hosts_and_what_was_there_are_called_directly():
    environment = {"NO_PROXY": "a, b", "no_proxy": "b,c"}
    urls = ["http://api:8080/execution/", "https://[::1]:1/", "nonsense", "http://[", "http://api/"]
    assert exemptions(environment, urls, " vault.internal ,,d ") == "a,b,c,vault.internal,d,api,::1"
    assert exemptions({}, [], "") == ""


def test_the_listener_is_there_only_if_the_setting_is(monkeypatch):
    pytest.importorskip("airflow")
    monkeypatch.delenv("AIRFLOW__AIRFLOW_ENVOY__PROXY_CONNECTION", raising=False)
    assert proxy.listeners() == []
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__PROXY_CONNECTION", " envoy ")
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__NO_PROXY", "vault")
    assert proxy.listeners() == [proxy]
    assert proxy.options() == ("envoy", "vault")


@pytest.mark.parametrize(
    "end",
    ["on_task_instance_success", "on_task_instance_failed", "on_task_instance_skipped", "before_stopping"],
)
def test_the_listener_sets_and_ends_it_by_airflows_own_listener_manager(monkeypatch, end):
    """All that Airflow passes is passed; what a version does not have of it is left out."""
    pytest.importorskip("airflow")
    try:
        from airflow.sdk._shared.listeners.listener import ListenerManager
        from airflow.sdk._shared.listeners.spec import lifecycle, taskinstance
    except ImportError:
        from airflow.listeners.listener import ListenerManager

        manager = ListenerManager()
    else:
        manager = ListenerManager()
        manager.add_hookspecs(lifecycle)
        manager.add_hookspecs(taskinstance)
    hooks = [name for name in dir(manager.hook) if not name.startswith("_")]
    if end not in hooks:
        pytest.skip("this Airflow has no such hook")
    manager.add_listener(proxy)
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__PROXY_CONNECTION", "envoy")
    identity = token(600)
    monkeypatch.setattr(proxy, "reader", lambda conn_id, task_instance: lambda: connection(identity))
    given = {"previous_state": None, "task_instance": SimpleNamespace(), "session": None, "error": None}

    def call(name: str) -> None:
        hook = getattr(manager.hook, name)
        names = hook.spec.argnames
        hook(**{n: given.get(n) for n in names})

    call("on_task_instance_running")
    assert os.environ["http_proxy"] == f"http://airflow:{identity}@127.0.0.1:8080"
    call(end)
    assert "http_proxy" not in os.environ
    assert proxy._current is None


def test_nothing_that_goes_wrong_in_the_listener_is_raised(monkeypatch, caplog):
    pytest.importorskip("airflow")
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__PROXY_CONNECTION", "envoy")

    def fail(*_: Any) -> Any:
        raise RuntimeError("eyJhbGciOiJub25lIn0.e30.")

    monkeypatch.setattr(proxy, "reader", fail)
    proxy.start(SimpleNamespace())
    assert "RuntimeError" in caplog.text
    assert "e30" not in caplog.text


def test_an_opener_of_the_tasks_own_stays(monkeypatch):
    mine = urllib.request.build_opener(urllib.request.ProxyHandler({"http": "http://mine:1"}))
    monkeypatch.setattr(urllib.request, "_opener", mine)
    one = Proxy(lambda: connection(None), "", environment={}, mask=lambda secret: None)
    one.start()
    one.stop()
    assert urllib.request._opener is mine


# Real clients.


class Recorder(http.server.BaseHTTPRequestHandler):
    """A proxy that answers itself."""

    seen: list[tuple[str, str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Recorder.seen.append((self.command, self.path, self.headers.get("proxy-authorization")))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_CONNECT(self) -> None:
        Recorder.seen.append((self.command, self.path, self.headers.get("proxy-authorization")))
        self.send_error(403)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def by_requests(url: str) -> None:
    import requests

    requests.get(url, timeout=10)


def by_httpx(url: str) -> None:
    import httpx

    httpx.get(url, timeout=10)


def by_urllib(url: str) -> None:
    urllib.request.urlopen(url, timeout=10).read()


def by_aiohttp(url: str) -> None:
    import aiohttp

    async def call() -> None:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
            await answer.read()

    asyncio.run(call())


def by_curl(url: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    subprocess.run(["curl", "--silent", "--max-time", "10", url], check=True, capture_output=True)


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_urllib, by_aiohttp, by_curl])
def test_real_clients_send_the_credentials_to_the_proxy(client, monkeypatch):
    pytest.importorskip("httpx")
    for name in (*PROXIES, "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    Recorder.seen.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    identity, access = token(60, pad="x" * 900), token(60, pad="y" * 400)
    one = Proxy(
        lambda: connection(identity, access, port=server.server_address[1]),
        "direct.invalid",
        mask=lambda secret: None,
        renewable=lambda: False,
    )
    basic = "Basic " + base64.b64encode(f"{access}:{identity}".encode()).decode()
    try:
        one.start()
        client("http://orders.internal/v1/orders?x=1")
        assert Recorder.seen == [("GET", "http://orders.internal/v1/orders?x=1", basic)]
        Recorder.seen.clear()
        # TLS goes through a tunnel, which this proxy refuses; who asks for it is what counts.
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own
            client("https://orders.internal/v1/orders")
        assert Recorder.seen[0] == ("CONNECT", "orders.internal:443", basic)
        Recorder.seen.clear()
        with pytest.raises(Exception):  # noqa: B017, PT011 - the name does not exist
            client("http://direct.invalid/")
        assert Recorder.seen == []
    finally:
        one.stop()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_urllib, by_aiohttp, by_curl])
def test_real_clients_call_nobody_without_an_identity(client, monkeypatch):
    for name in (*PROXIES, "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Recorder.seen.clear()
    one = Proxy(lambda: connection(None, host="envoy.internal"), "", mask=lambda secret: None)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        client(url)
        assert len(Recorder.seen) == 1  # counter-check: directly, it is reached
        one.start()
        with pytest.raises(Exception):  # noqa: B017, PT011 - each client has its own
            client(url)
        assert len(Recorder.seen) == 1
    finally:
        one.stop()
        server.shutdown()
        server.server_close()


def test_a_worker_that_signs_asks_its_provider_directly(
    monkeypatch: pytest.MonkeyPatch, settings_of: Any, provider: Any
) -> None:
    """By Envoy it would be asked for a token with credentials that need one, or not at all."""
    pytest.importorskip("airflow")
    for name in (*proxy.PROXIES, *proxy.EXEMPTIONS):
        monkeypatch.delenv(name, raising=False)
    token_url = provider.url + "/token"
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__PROXY_CONNECTION", "way_out")
    monkeypatch.setenv("AIRFLOW__AIRFLOW_ENVOY__TOKEN_URL", token_url)
    settings = settings_of(token_url=token_url, client_id="a", client_secret="b", token_timeout="5")

    def unreadable(*_: Any) -> Any:
        return lambda: 1 / 0

    monkeypatch.setattr(proxy, "reader", unreadable)
    proxy.start(None)
    try:
        assert os.environ["http_proxy"] == proxy.NOWHERE
        assert AccessTokens(settings).token() == "access-1"
    finally:
        proxy.stop()
