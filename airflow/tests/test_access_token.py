"""Access tokens: the request, the answer in every shape, and what a slow or broken provider may cost."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_envoy.access_token import AccessTokens
from airflow_envoy.refusal import Refusal
from airflow_envoy.settings import Settings

SECRET = "s3cret: &/+%"
Make = Callable[..., Settings]


@pytest.fixture
def settings(settings_of: Make, provider: Any) -> Make:
    """Settings for the provider, with generous time unless a test says otherwise: the machine may be busy."""

    def make(**changes: str | None) -> Settings:
        usual = {"token_url": provider.url + "/token", "client_id": "air flow", "client_secret": SECRET}
        return settings_of(**{**usual, "token_timeout": "5", **changes})

    return make


def refused(tokens: AccessTokens, **asked: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        tokens.token(**asked)
    assert SECRET not in caught.value.text
    return caught.value


def form(request: dict[str, Any]) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request["body"], strict_parsing=True).items()}


def test_without_a_provider_there_is_no_token(settings_of: Make) -> None:
    tokens = AccessTokens(settings_of())
    assert tokens.token() is None
    assert asyncio.run(tokens.token_async()) is None


def test_the_client_authenticates_by_form_encoded_basic(settings: Make, provider: Any) -> None:
    assert AccessTokens(settings(scope="a b", resource="urn:x:y", token_audience="api")).token() == "access-1"
    request = provider.requests[0]
    scheme, _, credentials = request["headers"]["authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(credentials) == b"air+flow:s3cret%3A+%26%2F%2B%25"
    assert form(request) == {
        "grant_type": "client_credentials",
        "scope": "a b",
        "resource": "urn:x:y",
        "audience": "api",
    }


def test_or_in_the_body(settings: Make, provider: Any) -> None:
    AccessTokens(settings(client_authentication="client_secret_post")).token()
    request = provider.requests[0]
    assert "authorization" not in request["headers"]
    assert form(request) == {
        "grant_type": "client_credentials",
        "client_id": "air flow",
        "client_secret": SECRET,
    }


def test_a_secret_in_a_file_is_read_anew_for_each_fetch(
    settings: Make, provider: Any, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    path.write_text("one\n")
    tokens = AccessTokens(settings(client_secret=None, client_secret_file=str(path)))
    tokens.token("a")
    path.write_text("two")
    tokens.token("b")
    sent = [base64.b64decode(r["headers"]["authorization"].split()[1]) for r in provider.requests]
    assert sent == [b"air+flow:one", b"air+flow:two"]
    path.write_text("")
    assert refused(tokens, scope="c").code == "settings_invalid"
    path.unlink()
    assert "client_secret_file" in refused(tokens, scope="d").text


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["RS256", "ES256", "ES384", "EdDSA"],
)
def test_or_by_a_signed_assertion(
    settings: Make, provider: Any, tmp_path: Path, private: Any, algorithm: str
) -> None:
    path = tmp_path / "client.pem"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    tokens = AccessTokens(
        settings(
            client_secret=None,
            client_authentication="private_key_jwt",
            client_key=str(path),
            client_key_id="client-1",
        )
    )
    tokens.token("a")
    tokens.token("b")
    ids = set()
    for request in provider.requests:
        sent = form(request)
        assert sent["client_id"] == "air flow"
        assert sent["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assert jwt.get_unverified_header(sent["client_assertion"])["kid"] == "client-1"
        claims = jwt.decode(
            sent["client_assertion"],
            private.public_key(),
            algorithms=[algorithm],
            audience=provider.url + "/token",
        )
        assert claims["iss"] == claims["sub"] == "air flow"
        assert 0 < claims["exp"] - claims["iat"] <= 60
        ids.add(claims["jti"])
    assert len(ids) == 2


def test_an_unusable_client_key_is_a_fault_of_the_settings(
    settings: Make, provider: Any, tmp_path: Path
) -> None:
    path = tmp_path / "client.pem"
    path.write_bytes(b"no key")
    tokens = AccessTokens(
        settings(client_secret=None, client_authentication="private_key_jwt", client_key=str(path))
    )
    assert refused(tokens).code == "settings_invalid"
    assert provider.requests == []


def test_the_endpoint_is_discovered_once(settings: Make, provider: Any) -> None:
    def answer(request: dict[str, Any]) -> Any:
        if request["path"] == "/realm/.well-known/openid-configuration":
            document = {"issuer": provider.url + "/realm", "token_endpoint": provider.url + "/realm/token"}
            return provider.json(document)
        assert request["path"] == "/realm/token"
        return provider.token()

    provider.answer = answer
    tokens = AccessTokens(settings(token_url=None, oidc_issuer=provider.url + "/realm"))
    assert tokens.token("a") == tokens.token("b") == "access-1"
    assert [r["method"] for r in provider.requests] == ["GET", "POST", "POST"]


@pytest.mark.parametrize(
    ("document", "status", "problem"),
    [
        (
            {"issuer": "https://other.test", "token_endpoint": "https://idp.test/token"},
            200,
            "another `issuer`",
        ),
        ({"issuer": "{url}/", "token_endpoint": "https://idp.test/token"}, 200, "another `issuer`"),
        ({"token_endpoint": "https://idp.test/token"}, 200, "another `issuer`"),
        ({"issuer": "{url}", "token_endpoint": "http://idp.test/token"}, 200, "must be https"),
        ({"issuer": "{url}", "token_endpoint": "https://u:p@idp.test/token"}, 200, "user or a password"),
        ({"issuer": "{url}", "token_endpoint": 1}, 200, "is missing"),
        ({"issuer": "{url}"}, 200, "is missing"),
        (["{url}"], 200, "no JSON object"),
        ({"issuer": "{url}"}, 404, "HTTP 404"),
        ({"issuer": "{url}"}, 302, "redirects"),
    ],
)
def test_a_discovery_document_that_cannot_be_trusted_is_refused_and_no_secret_sent(
    settings: Make, provider: Any, document: Any, status: int, problem: str
) -> None:
    text = json.dumps(document).replace("{url}", provider.url)
    headers = {"content-type": "application/json", "location": provider.url + "/elsewhere"}
    provider.answer = lambda request: (status, headers, text.encode())
    refusal = refused(AccessTokens(settings(token_url=None, oidc_issuer=provider.url)))
    assert problem in refusal.text
    assert {request["method"] for request in provider.requests} == {"GET"}
    assert len(provider.requests) == 1


def encoded(**claims: Any) -> str:
    return jwt.encode(claims, "x" * 32, algorithm="HS256")


@pytest.mark.parametrize(
    ("answer", "code", "problem"),
    [
        ({"access_token": None}, "token_refused", "no access token"),
        ({"access_token": ""}, "token_refused", "no access token"),
        ({"access_token": 1}, "token_refused", "no access token"),
        ({"access_token": "a b"}, "token_refused", "no access token"),
        ({"access_token": "a\r\nX-Evil: 1"}, "token_refused", "no access token"),
        ({"access_token": "é"}, "token_refused", "no access token"),
        ({"access_token": "a" * 20_000}, "token_refused", "no access token"),
        ({"token_type": None}, "token_refused", "type Bearer"),
        ({"token_type": "DPoP"}, "token_refused", "type Bearer"),
        ({"expires_in": 0}, "token_refused", "already expired"),
        ({"expires_in": -5}, "token_refused", "already expired"),
        ({"access_token": encoded(exp=1_000_000_000)}, "token_refused", "compare the clocks"),
    ],
)
def test_an_answer_that_is_no_usable_token_is_refused(
    settings: Make, provider: Any, answer: dict[str, Any], code: str, problem: str
) -> None:
    whole = {"access_token": "x", "token_type": "Bearer", "expires_in": 300, **answer}
    provider.answer = lambda request: provider.json({k: v for k, v in whole.items() if v is not None})
    refusal = refused(AccessTokens(settings()))
    assert (refusal.code, problem in refusal.text) == (code, True), refusal.text


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff"])
def test_garbage_is_no_token(settings: Make, provider: Any, body: bytes) -> None:
    provider.answer = lambda request: (200, {"content-type": "text/html"}, body)
    assert refused(AccessTokens(settings())).code == "token_unavailable"


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({"expires_in": 300}, 299, 300),
        ({"expires_in": "300"}, 299, 300),
        ({"expires_in": 12.5}, 12, 12.5),
        ({"expires_in": None}, 59, 60),
        ({"expires_in": "soon"}, 59, 60),
        ({"expires_in": "nan"}, 59, 60),
        ({"expires_in": True}, 59, 60),
        ({"expires_in": None, "token": "own"}, 115, 120),
        ({"expires_in": 3600, "token": "own"}, 115, 120),
        ({"expires_in": 30, "token": "own"}, 29, 30),
        ({"token_type": "bEARER"}, 299, 300),
        ({"token": "not.a.jwt"}, 299, 300),
    ],
)
def test_a_token_lives_as_long_as_the_shorter_of_what_is_said(
    settings: Make, provider: Any, changes: dict[str, Any], least: float, most: float
) -> None:
    if changes.get("token") == "own":
        changes = {**changes, "token": encoded(exp=int(time.time()) + 120)}
    provider.answer = lambda request: provider.token(**changes)
    tokens = AccessTokens(settings())
    tokens.token()
    (entry,) = tokens._entries.values()
    assert least <= entry.lifetime <= most


@pytest.mark.parametrize(
    ("status", "document", "code", "problem"),
    [
        (
            400,
            {"error": "invalid_scope", "error_description": "no"},
            "token_refused",
            "`invalid_scope` (HTTP 400)",
        ),
        (401, {"error": "invalid_client"}, "token_refused", "`invalid_client` (HTTP 401)"),
        (400, {"error": SECRET}, "token_refused", "HTTP 400"),
        (400, {"error": 'a"b'}, "token_refused", "HTTP 400"),
        (400, {"error": "x" * 65}, "token_refused", "HTTP 400"),
        (400, {"error": ["x"]}, "token_refused", "HTTP 400"),
        (403, "<html>", "token_refused", "HTTP 403"),
        (429, {}, "token_unavailable", "HTTP 429"),
        (500, {"error": "server_error"}, "token_unavailable", "HTTP 500 (server_error); try again"),
        (503, "<html>", "token_unavailable", "HTTP 503"),
        (302, {}, "token_unavailable", "redirects (HTTP 302)"),
        (307, {}, "token_unavailable", "redirects (HTTP 307)"),
        (204, {}, "token_refused", "HTTP 204"),
    ],
)
def test_an_error_of_the_provider_is_told_by_its_code(
    settings: Make, provider: Any, status: int, document: Any, code: str, problem: str
) -> None:
    headers = {"content-type": "application/json", "location": provider.url + "/elsewhere"}
    body = b"" if status == 204 else json.dumps(document).encode()
    provider.answer = lambda request: (status, headers, body)
    refusal = refused(AccessTokens(settings()))
    assert refusal.code == code
    assert problem in refusal.text
    assert len(provider.requests) == 1


def test_a_description_goes_to_the_log_but_never_with_the_secret(
    settings: Make, provider: Any, records: Callable[[], list[dict[str, Any]]]
) -> None:
    for scope, description in [
        ("a", "scope unknown\nforged line"),
        ("b", f"bad secret {SECRET}"),
        ("c", encoded(a=1)),
    ]:
        body = {"error": "invalid_scope", "error_description": description}
        provider.answer = lambda request, body=body: provider.json(body, 400)
        refused(AccessTokens(settings()), scope=scope)
    lines = [line for line in records() if line["event"] == "token_error"]
    assert lines[0]["description"] == "scope unknown\nforged line"
    assert "description" not in lines[1]
    assert lines[2]["description"] == "eyJ***"
    assert SECRET not in json.dumps(records())


def test_a_provider_that_is_not_there_is_named_as_that(settings: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refusal = refused(AccessTokens(settings(token_url=f"http://127.0.0.1:{port}/")))
    assert refusal.code == "token_unavailable"
    assert "cannot be reached" in refusal.text


def test_an_untrusted_certificate_authority_file_is_a_fault_of_the_settings(
    settings: Make, tmp_path: Path
) -> None:
    tokens = AccessTokens(settings(ca_file=str(tmp_path / "none.pem")))
    refusal = refused(tokens)
    assert (refusal.code, "ca_file" in refusal.text) == ("settings_invalid", True)


def test_a_connection_that_is_closed_is_no_answer(settings: Make, provider: Any) -> None:
    provider.answer = lambda request: None
    assert refused(AccessTokens(settings())).code == "token_unavailable"


def test_an_answer_without_end_is_cut_off(settings: Make, provider: Any) -> None:
    provider.answer = lambda request: (200, {}, b" " * 1_000_000)
    assert "too large" in refused(AccessTokens(settings())).text


def test_a_slow_provider_costs_the_timeout_and_no_more(settings: Make, provider: Any) -> None:
    release = threading.Event()

    def slow(request: dict[str, Any]) -> Any:
        release.wait(20)
        return provider.token()

    provider.answer = slow
    tokens = AccessTokens(settings(token_timeout="0.3"))
    refused_after: list[float] = []

    def ask() -> None:
        started = time.monotonic()
        assert refused(tokens).code == "token_unavailable"
        refused_after.append(time.monotonic() - started)

    with ThreadPoolExecutor(20) as pool:
        for future in [pool.submit(ask) for _ in range(20)]:
            future.result()
    release.set()
    assert len(provider.requests) == 1
    assert max(refused_after) < 1.0


def test_a_provider_that_drips_ends_at_the_timeout(settings: Make) -> None:
    """Each byte comes in time, the whole does not: the timeout is for the whole."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1000:
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    tokens = AccessTokens(
        settings(token_url=f"http://127.0.0.1:{listener.getsockname()[1]}/", token_timeout="0.4")
    )
    started = time.monotonic()
    assert "within 0.4 s" in refused(tokens).text
    assert time.monotonic() - started < 2
    stop.set()
    thread.join()
    listener.close()


def test_many_who_ask_make_one_request(settings: Make, provider: Any) -> None:
    def answer(request: dict[str, Any]) -> Any:
        time.sleep(0.2)
        return provider.token()

    provider.answer = answer
    tokens = AccessTokens(settings())
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda _: tokens.token(), range(20))) == {"access-1"}
    assert len(provider.requests) == 1

    async def all_at_once() -> set[str | None]:
        return set(await asyncio.gather(*[tokens.token_async("other") for _ in range(20)]))

    assert asyncio.run(all_at_once()) == {"access-1"}
    assert len(provider.requests) == 2


def test_scopes_and_resources_have_tokens_of_their_own(settings: Make, provider: Any) -> None:
    provider.answer = lambda request: provider.token("-".join(sorted(form(request).values())))
    tokens = AccessTokens(settings(scope="usual"))
    assert tokens.token() == "client_credentials-usual"
    assert tokens.token("usual") == "client_credentials-usual"
    assert tokens.token("other") == "client_credentials-other"
    assert len(provider.requests) == 2


def test_one_who_gives_up_does_not_take_the_token_from_the_others(settings: Make, provider: Any) -> None:
    def answer(request: dict[str, Any]) -> Any:
        time.sleep(0.3)
        return provider.token()

    provider.answer = answer
    tokens = AccessTokens(settings())

    async def scenario() -> str | None:
        impatient = asyncio.ensure_future(tokens.token_async())
        patient = asyncio.ensure_future(tokens.token_async())
        await asyncio.sleep(0.05)
        impatient.cancel()
        return await patient

    assert asyncio.run(scenario()) == "access-1"
    assert len(provider.requests) == 1


def test_a_dead_provider_is_asked_once_a_second(settings: Make, provider: Any) -> None:
    provider.answer = lambda request: provider.json({}, 500)
    now = [1000.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])
    for _ in range(50):
        assert refused(tokens).code == "token_unavailable"
    assert len(provider.requests) == 1
    now[0] += 1.0
    provider.answer = lambda request: provider.token()
    assert tokens.token() == "access-1"
    assert len(provider.requests) == 2


def settle(tokens: AccessTokens) -> None:
    """Waits until nothing is in flight."""
    deadline = time.monotonic() + 10
    while any(entry.flight for entry in tokens._entries.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")]
)
def test_a_host_without_a_thread_to_spare_refuses_until_it_has_one(
    settings: Make, provider: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = [0.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])

    def none_left(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        for _ in range(2):
            assert refused(tokens).code == "token_unavailable"
    now[0] += 2
    assert tokens.token() == "access-1"


def test_a_token_is_renewed_in_the_background_before_it_expires(settings: Make, provider: Any) -> None:
    now = [1000.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])
    assert tokens.token(lasting=60) == "access-1"
    provider.answer = lambda request: provider.token("access-2")
    now[0] += 160
    assert tokens.token(lasting=60) == "access-1"
    settle(tokens)
    assert len(provider.requests) == 1
    now[0] += 30  # 110 s left: within twice of what is asked for
    assert tokens.token(lasting=60) == "access-1"
    settle(tokens)
    assert tokens.token(lasting=60) == "access-2"
    assert len(provider.requests) == 2


def test_a_token_that_would_not_last_is_replaced_before_it_is_handed_out(
    settings: Make, provider: Any
) -> None:
    now = [1000.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])
    tokens.token(lasting=60)
    provider.answer = lambda request: provider.token("access-2")
    now[0] += 250
    assert tokens.token(lasting=60) == "access-2"


def test_the_old_token_serves_while_the_provider_is_away_and_until_it_is_over(
    settings: Make, provider: Any
) -> None:
    now = [1000.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])
    tokens.token(lasting=60)
    provider.answer = lambda request: provider.json({}, 503)
    for left in (200, 100, 50, 11):
        now[0] = 1300.0 - left
        for _ in range(3):
            assert tokens.token(lasting=60) == "access-1"
            settle(tokens)
    now[0] = 1300.0 - 9
    assert refused(tokens, lasting=60).code == "token_unavailable"
    assert len(provider.requests) <= 6


def test_short_tokens_are_not_fetched_for_each_read(settings: Make, provider: Any) -> None:
    provider.answer = lambda request: provider.token(expires_in=20)
    now = [1000.0]
    tokens = AccessTokens(settings(), clock=lambda: now[0])
    for _ in range(8):
        assert tokens.token(lasting=600) == "access-1"
        now[0] += 1
    settle(tokens)
    assert len(provider.requests) <= 2


def test_the_table_of_tokens_is_bounded(settings: Make, provider: Any) -> None:
    tokens = AccessTokens(settings())
    for number in range(300):
        tokens.token(f"scope-{number}")
    assert len(tokens._entries) <= 256


def test_nothing_shows_a_token_or_the_secret(
    settings: Make, provider: Any, records: Callable[[], list[dict[str, Any]]]
) -> None:
    tokens = AccessTokens(settings())
    tokens.token()
    shown = repr(tokens) + repr(tokens._provider) + repr(tokens._entries) + json.dumps(records())
    assert "access-1" not in shown
    assert SECRET not in shown
    assert [line["event"] for line in records()] == ["token_fetched"]
