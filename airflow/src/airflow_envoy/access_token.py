"""Access tokens of the OIDC provider by the client credentials grant (RFC 6749, section 4.4).

One flight at a time for each (scope, resource), however many wait for it; a token is renewed in the
background before it expires; a provider that fails is asked again after a second, not by everybody at once.
All requests are made by one thread with an event loop of its own, so that a slow provider takes up no thread
of anybody else and every fetch ends in time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import concurrent.futures
import json
import math
import os
import re
import ssl
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode

from .record import record
from .refusal import Refusal
from .settings import Settings, url_problem

if TYPE_CHECKING:
    import httpx

_Flight = concurrent.futures.Future  # of the token
_ENTRIES = 256
_BODY_LIMIT = 256 * 1024
_TOKEN_LIMIT = 16 * 1024
_DISCOVERY_AGE = 3600.0
_ASSERTION_LIFETIME = 60
_UNSTATED_LIFETIME = 60.0
"""Seconds for which a token is used whose lifetime neither the provider nor the token itself tells."""
_PAUSE = {"token_unavailable": 1.0, "token_refused": 2.0}
_UNFIT = 10.0
"""Seconds of remaining life (or a tenth of the whole, if that is less) below which a token is not handed out.
"""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, section 2.1
_ERROR = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{1,64}")  # RFC 6749, section 5.2


@dataclass(slots=True)
class _Entry:
    token: str | None = field(default=None, repr=False)
    lifetime: float = 0.0
    expires: float = 0.0  # by the monotonic clock
    flight: _Flight[str] | None = None
    failure: Refusal | None = None
    pause_until: float = 0.0

    def remaining(self, now: float) -> float:
        """Seconds of life left, less what is not handed out."""
        return self.expires - now - min(_UNFIT, self.lifetime / 10) if self.token else 0.0


class AccessTokens:
    """The access tokens that ``settings`` describe. Any number of threads and event loops may use one.

    No lock is held while anything waits: the lock protects the table alone.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str | None, str | None], _Entry] = OrderedDict()
        self._provider = _Provider(settings)
        self._loop = _Loop()

    def token(
        self, scope: str | None = None, resource: str | None = None, *, lasting: float = 0
    ) -> str | None:
        """An access token for ``scope`` and ``resource`` (None: as the settings say); None if no provider is
        set.

        One that lives for ``lasting`` seconds more, as far as the provider's tokens live that long. Waits for
        at most `token_timeout`. Raises `Refusal` (`token_unavailable`, `token_refused`).
        """
        if not self._settings.has_provider:
            return None
        found, fallback = self._find(scope, resource, lasting)
        if isinstance(found, str):
            return found
        try:
            return found.result(timeout=self._patience)
        except (concurrent.futures.TimeoutError, TimeoutError):
            failure = self._too_slow()
        except Refusal as error:
            failure = error
        return _or_else(fallback, failure)

    async def token_async(
        self, scope: str | None = None, resource: str | None = None, *, lasting: float = 0
    ) -> str | None:
        """The same for an event loop, which goes on meanwhile."""
        if not self._settings.has_provider:
            return None
        found, fallback = self._find(scope, resource, lasting)
        if isinstance(found, str):
            return found
        try:
            # Shielded: one caller that goes away must not take the flight from the others.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(found)), self._patience)
        except (asyncio.TimeoutError, TimeoutError):
            failure = self._too_slow()
        except Refusal as error:
            failure = error
        return _or_else(fallback, failure)

    @property
    def _patience(self) -> float:
        # The flight ends itself at `token_timeout`, with a better reason; this is for a process that has no
        # time to run it.
        return self._settings.token_timeout + 0.1

    def _find(
        self, scope: str | None, resource: str | None, lasting: float
    ) -> tuple[str | _Flight[str], str | None]:
        """A token, or the flight that will bring it and what may be used instead if it fails."""
        key = (scope or self._settings.scope, resource or self._settings.resource)
        now = self._clock()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
                self._evict()
            self._entries.move_to_end(key)
            remaining = entry.remaining(now)
            usable = entry.token if remaining > 0 else None
            # Half of the life that a new token has: a provider whose tokens are short, or that hands out the
            # same one again, is not asked each time.
            enough = remaining >= min(lasting, entry.lifetime / 2)
            renew = not enough or remaining < max(entry.lifetime / 4, min(2 * lasting, entry.lifetime / 2))
            if usable is not None and not renew:
                return usable, None
            if entry.flight is None and now >= entry.pause_until:
                entry.flight = concurrent.futures.Future()
                start = True
            else:
                start = False
            flight, failure = entry.flight, entry.failure
        if start and flight is not None:
            problem = self._loop.run(self._fly(key, entry, flight))
            if problem is not None:
                self._land(entry, flight, problem)
        if usable is not None and (enough or flight is None):
            return usable, None
        if flight is None:
            raise _again(failure)
        return flight, usable

    def _evict(self) -> None:
        """Keeps the table bounded: connections choose the keys. Called with the lock."""
        while len(self._entries) > _ENTRIES:
            self._entries.popitem(last=False)

    async def _fly(self, key: tuple[str | None, str | None], entry: _Entry, flight: _Flight[str]) -> None:
        started = time.monotonic()
        failure: Refusal | None = None
        token, lifetime = "", 0.0
        try:
            self._provider.prepare()
            token, lifetime = await asyncio.wait_for(self._provider.fetch(*key), self._settings.token_timeout)
        except (asyncio.TimeoutError, TimeoutError):
            failure = self._too_slow()
        except Refusal as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            failure = Refusal(
                "token_unavailable", f"the OIDC provider cannot be asked ({type(error).__name__})"
            )
        took = round(time.monotonic() - started, 3)
        if failure is None:
            record(
                INFO, "token_fetched", scope=key[0], resource=key[1], seconds=took, lifetime=round(lifetime)
            )
        else:
            record(
                WARNING, failure.code, problem=failure.message, scope=key[0], resource=key[1], seconds=took
            )
        self._land(entry, flight, failure, token, lifetime)

    def _land(
        self,
        entry: _Entry,
        flight: _Flight[str],
        failure: Refusal | None,
        token: str = "",
        lifetime: float = 0.0,
    ) -> None:
        """Ends ``flight``, whichever way, so that another one can start."""
        now = self._clock()
        with self._lock:
            entry.flight = None
            entry.failure = failure
            if failure is None:
                entry.token, entry.lifetime, entry.expires, entry.pause_until = (
                    token,
                    lifetime,
                    now + lifetime,
                    0.0,
                )
            else:
                entry.pause_until = now + _PAUSE.get(failure.code, 1.0)
        if failure is None:
            flight.set_result(token)
        else:
            flight.set_exception(failure)

    def _too_slow(self) -> Refusal:
        return Refusal(
            "token_unavailable",
            f"the OIDC provider gave no access token within {self._settings.token_timeout:g} s; try again",
        )


def _or_else(fallback: str | None, failure: Refusal) -> str:
    if fallback is not None:
        return fallback
    raise _again(failure)


def _again(failure: Refusal | None) -> Refusal:
    """A new exception for each who waited: one that many threads raise collects the tracebacks of all."""
    if failure is None:
        return Refusal("token_unavailable", "there is no access token")
    return Refusal(failure.code, failure.message)


class _Loop:
    """One daemon thread with an event loop, made when it is first needed and anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> Refusal | None:
        """Starts ``work``; why not, if it cannot start."""
        try:
            asyncio.run_coroutine_threadsafe(work, self._running())
        except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
            work.close()
            return Refusal("token_unavailable", f"no access token can be fetched ({type(error).__name__})")
        return None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="airflow-envoy-tokens", daemon=True)
                try:
                    thread.start()
                except BaseException:
                    loop.close()
                    raise
                self._loop, self._pid = loop, os.getpid()
            return self._loop


@dataclass(slots=True)
class _Provider:
    """Speaks to the token endpoint. Used from one event loop only."""

    settings: Settings
    _client: httpx.AsyncClient | None = field(default=None, repr=False)
    _client_loop: Any = field(default=None, repr=False)
    _endpoint: str | None = None
    _endpoint_expires: float = 0.0

    def prepare(self) -> None:
        """Imports and reads what the first fetch needs, which must not count as the provider's time."""
        self._http()

    async def fetch(self, scope: str | None, resource: str | None) -> tuple[str, float]:
        """A token and the seconds that it lives. Raises `Refusal`."""
        endpoint = self.settings.token_url or await self._discover()
        form = {"grant_type": "client_credentials"}
        if scope:
            form["scope"] = scope
        if resource:
            form["resource"] = resource
        if self.settings.token_audience:
            form["audience"] = self.settings.token_audience
        headers = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
        secret = self._authenticate(form, headers, endpoint)
        status, body = await self._ask(
            "POST", endpoint, headers=headers, content=urlencode(form).encode("ascii")
        )
        if status != 200:
            raise _error_response(status, body, secret)
        return _token_response(body)

    def _authenticate(self, form: dict[str, str], headers: dict[str, str], endpoint: str) -> str | None:
        """Adds the client's authentication to the request; returns the secret, which must not be shown."""
        settings = self.settings
        client = settings.client_id or ""
        if settings.client_authentication == "private_key_jwt":
            form["client_id"] = client
            form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            form["client_assertion"] = self._assertion(client, settings.oidc_issuer or endpoint)
            return None
        secret = self._secret()
        if settings.client_authentication == "client_secret_post":
            form["client_id"] = client
            form["client_secret"] = secret
        else:
            # RFC 6749, section 2.3.1: both parts are form-encoded before they become Basic credentials.
            pair = f"{quote_plus(client)}:{quote_plus(secret)}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")
        return secret

    def _secret(self) -> str:
        path = self.settings.client_secret_file
        if path is None:
            return self.settings.client_secret or ""
        try:
            secret = path.read_text("utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise _unusable("client_secret_file", error) from None
        if not secret:
            raise Refusal("settings_invalid", "the file of `[airflow_envoy] client_secret_file` is empty")
        return secret

    def _assertion(self, client: str, audience: str) -> str:
        """RFC 7523, section 3. ``audience`` is the provider's issuer where it is configured, else its token
        endpoint.
        """
        import jwt
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        path = self.settings.client_key
        try:
            key: Any = load_pem_private_key(path.read_bytes() if path else b"", password=None)
        except (OSError, ValueError, TypeError) as error:
            raise _unusable("client_key", error) from None
        algorithm = _algorithm(key)
        if algorithm is None:
            raise Refusal(
                "settings_invalid",
                "the key of `[airflow_envoy] client_key` is neither RSA, P-256, P-384 nor Ed25519",
            )
        now = int(time.time())
        claims = {
            "iss": client,
            "sub": client,
            "aud": audience,
            "jti": uuid.uuid4().hex,
            "iat": now,
            "exp": now + _ASSERTION_LIFETIME,
        }
        kid = self.settings.client_key_id
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)

    async def _discover(self) -> str:
        """The token endpoint by OpenID Connect Discovery 1.0, section 4."""
        now = time.monotonic()
        if self._endpoint is not None and now < self._endpoint_expires:
            return self._endpoint
        issuer = self.settings.oidc_issuer or ""
        url = issuer.rstrip("/") + "/.well-known/openid-configuration"
        status, body = await self._ask("GET", url, headers={"accept": "application/json"})
        if status != 200:
            raise Refusal("token_unavailable", f"the OIDC provider's discovery document: HTTP {status}")
        document = _object(body)
        if document is None:
            raise Refusal("token_unavailable", "the OIDC provider's discovery document is no JSON object")
        if document.get("issuer") != issuer:
            raise Refusal(
                "token_refused",
                "the OIDC provider's discovery document has another `issuer` than `[airflow_envoy] "
                "oidc_issuer`, to the letter",
            )
        endpoint = document.get("token_endpoint")
        problem = url_problem(endpoint) if isinstance(endpoint, str) else "is missing"
        if problem or not isinstance(endpoint, str):
            raise Refusal(
                "token_refused", f"the `token_endpoint` of the OIDC provider's discovery document {problem}"
            )
        self._endpoint, self._endpoint_expires = endpoint, now + _DISCOVERY_AGE
        return endpoint

    async def _ask(
        self, method: str, url: str, *, headers: dict[str, str], content: bytes | None = None
    ) -> tuple[int, bytes]:
        import httpx

        try:
            async with self._http().stream(method, url, headers=headers, content=content) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _BODY_LIMIT:
                        raise Refusal("token_unavailable", "the OIDC provider's answer is too large")
                status = response.status_code
        except httpx.ConnectError as error:
            raise Refusal(
                "token_unavailable", f"the OIDC provider cannot be reached: {_reason(error)}"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise Refusal(
                "token_unavailable", f"the OIDC provider did not answer ({type(error).__name__})"
            ) from None
        if 300 <= status < 400:
            # Following one would send the client's credentials wherever it points.
            raise Refusal(
                "token_unavailable", f"the OIDC provider redirects (HTTP {status}), which is not followed"
            )
        return status, bytes(body)

    def _http(self) -> httpx.AsyncClient:
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._client_loop is not loop:
            try:
                context = ssl.create_default_context(cafile=self.settings.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise _unusable("ca_file", error) from None
            self._client = httpx.AsyncClient(
                verify=context, follow_redirects=False, timeout=self.settings.token_timeout
            )
            self._client_loop = loop
        return self._client


def _algorithm(key: Any) -> str | None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "EdDSA"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {"secp256r1": "ES256", "secp384r1": "ES384"}.get(key.curve.name)
    return None


def _token_response(body: bytes) -> tuple[str, float]:
    """RFC 6749, section 5.1."""
    document = _object(body)
    if document is None:
        raise Refusal("token_unavailable", "the OIDC provider's answer is no JSON object")
    token = document.get("access_token")
    if not isinstance(token, str) or len(token) > _TOKEN_LIMIT or not _TOKEN.fullmatch(token):
        raise Refusal(
            "token_refused", "the OIDC provider's answer has no access token that can be sent as a header"
        )
    kind = document.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise Refusal("token_refused", "the OIDC provider's access token is not of the type Bearer")
    stated = _number(document.get("expires_in"))
    expiry = _expiry(token)
    own = None if expiry is None else expiry - time.time()
    if own is not None and own <= 0:
        raise Refusal(
            "token_refused",
            "the OIDC provider's new access token is already expired by this host's clock: compare the "
            "clocks of both",
        )
    known = [seconds for seconds in (stated, own) if seconds is not None]
    lifetime = min(known, default=_UNSTATED_LIFETIME)
    if lifetime <= 0:
        raise Refusal("token_refused", "the OIDC provider's new access token is already expired")
    return token, lifetime


def _error_response(status: int, body: bytes, secret: str | None) -> Refusal:
    """RFC 6749, section 5.2. The description goes to the log, the code to the task."""
    document = _object(body) or {}
    code = document.get("error")
    shown = (
        code if isinstance(code, str) and _ERROR.fullmatch(code) and not (secret and secret in code) else None
    )
    description = document.get("error_description")
    if isinstance(description, str):
        hidden = any(part and part in description for part in (secret, quote_plus(secret or "")))
        record(
            WARNING,
            "token_error",
            status=status,
            error=shown,
            description=None if hidden else description[:300],
        )
    if status in (408, 429) or status >= 500:
        return Refusal(
            "token_unavailable",
            f"the OIDC provider answered HTTP {status}{f' ({shown})' if shown else ''}; try again",
        )
    if shown:
        return Refusal(
            "token_refused", f"the OIDC provider refuses the access token: `{shown}` (HTTP {status})"
        )
    return Refusal("token_refused", f"the OIDC provider refuses the access token: HTTP {status}")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _number(value: object) -> float | None:
    """A number, or, as some providers send `expires_in`, a text of one. None if it makes no sense."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _expiry(token: str) -> float | None:
    """`exp` of a token that happens to be a JWT. Not verified, that is for Envoy: it tells when to renew."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return _number(claims.get("exp")) if isinstance(claims, dict) else None


def _unusable(option: str, error: BaseException) -> Refusal:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return Refusal("settings_invalid", f"the file of `[airflow_envoy] {option}` cannot be used: {reason}")


def _reason(error: BaseException) -> str:
    """The system's own words for a failed connection, which hold no secret."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); see `[airflow_envoy] ca_file`"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
