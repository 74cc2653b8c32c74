"""Checks that ask somebody: the API server, the OIDC provider, Envoy, the host of a connection."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_envoy import keys as ring
from airflow_envoy.command.doctor import local
from airflow_envoy.command.doctor.check import Context, Finding, fail, ok, skip, warn
from airflow_envoy.marker import NAME, Marker
from airflow_envoy.refusal import Refusal

if TYPE_CHECKING:
    import httpx

CLOCK_NOTED, CLOCK_REFUSED = 5, 30
"""Seconds of difference that are worth a word, and that the filter refuses by default (`clock_skew`)."""
LONG_TOKEN = 3600
"""Seconds of an access token's life beyond which it is worth a word."""
# What HttpHook takes out of `extra` for itself; everything else it sends as a header (providers-http 6.3.0).
HOOK_OPTIONS = frozenset(
    {
        "stream", "cert", "proxies", "proxy", "timeout", "verify", "verify_ssl", "allow_redirects",
        "max_redirects", "trust_env", "check_response", "srv_lookup",
    }
)  # fmt: skip


def base_url(context: Context) -> str:
    """The API server's base URL: the argument, `[api] base_url`, or this host's port."""
    if context.args.api_server:
        return str(context.args.api_server).rstrip("/")
    if url := context.option("api", "base_url"):
        return url.rstrip("/")
    scheme = "https" if context.option("api", "ssl_cert") else "http"
    return f"{scheme}://127.0.0.1:{context.option('api', 'port', '8080')}"


def get(context: Context, url: str) -> httpx.Response:
    """One GET, remembered with the time that passed (`clock`). Raises `httpx.HTTPError`, `OSError`."""
    import httpx

    if url not in context.memory:
        start = time.time()
        try:
            trust: Any = (
                ssl.create_default_context(cafile=context.args.ca_file) if context.args.ca_file else True
            )
            with httpx.Client(timeout=context.timeout, verify=trust, follow_redirects=False) as client:
                answer: Any = client.get(url, headers={"accept": "application/json"})
            context.memory[f"clock {url}"] = (start + time.time()) / 2
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            answer = error
        context.memory[url] = answer
    known = context.memory[url]
    if isinstance(known, Exception):
        raise Unreachable(_reason(known, context.timeout))
    response: httpx.Response = known
    return response


class Unreachable(Exception):
    """No answer: why, in words."""


def _reason(error: Exception, timeout: float) -> str:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {timeout:g} s"
    return str(error).strip() or type(error).__name__


def api_server(context: Context) -> Iterator[Finding]:
    """The API server runs with the core app, and with the plugin; its published keys are those of the
    ring.
    """
    if context.conf is not None and context.airflow_version < (3, 0):
        yield skip("the API-server plugin is for Airflow 3.0 and newer")
        return
    base = base_url(context)
    try:
        answer = get(context, f"{base}/airflow-envoy/jwks.json")
        if answer.status_code == 404:
            yield _without_plugin(context, base)
            return
    except Unreachable as error:
        yield fail(
            f"{base}: {error}", "is the API server running? set [api] base_url, or give --api-server URL"
        )
        return
    if answer.status_code != 200:
        yield fail(
            f"{base}/airflow-envoy/jwks.json: HTTP {answer.status_code}{_detail(answer)}",
            "its log says why, in a line of `airflow_envoy`",
        )
        return
    try:
        served = {str(key["kid"]) for key in answer.json()["keys"]}
    except (ValueError, KeyError, TypeError):
        yield fail(f"{base}/airflow-envoy/jwks.json: the answer is no JWK set", "is this URL Airflow's?")
        return
    expected = _published(context)
    if expected is None:
        yield warn(
            f"{base} serves {len(served)} keys; the ring here cannot be read to compare",
            "see the check `keys`",
        )
    elif context.option("workers", "secrets_backend").startswith("airflow_envoy."):
        yield _beside_the_worker(base, same=served == expected)
    elif served == expected:
        yield ok(f"{base} serves the keys of the ring")
    else:
        yield fail(
            f"{base} serves the keys {_list(served)}, the ring here has {_list(expected)}",
            "it reads another folder, or it cannot read this one (its log says so); several API servers "
            "need the same keys",
        )


def _beside_the_worker(base: str, *, same: bool) -> Finding:
    """The worker backend's ring must be another one than the API server's."""
    if same:
        return fail(
            f"the worker backend here signs with the keys that {base} signs with: any DAG can sign as the "
            "API server",
            "make a ring and an issuer for the workers, and `keys retire` what they could read",
        )
    return ok(f"{base} serves other keys than the workers' ring here, as it should")


def _without_plugin(context: Context, base: str) -> Finding:
    try:
        core = get(context, f"{base}/api/v2/version").status_code
    except Unreachable:
        core = 0
    if core == 200:
        return fail(
            f"{base} runs without the plugin", "pip install airflow-envoy in its environment, and restart it"
        )
    return fail(
        f"{base} has neither the plugin nor Airflow's core app",
        "`airflow api-server --apps execution` loads no plugins: run it with the core app too (or check the "
        "URL)",
    )


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
        message = detail["message"] if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {str(message)[:200]}"


def _published(context: Context) -> set[str] | None:
    if context.keys is None:
        return None
    try:
        return {key["kid"] for key in ring.KeyRing(context.keys).jwks(time.time())["keys"]}
    except Refusal:
        return None


def _list(kids: set[str]) -> str:
    return ", ".join(sorted(kids)) or "none"


def api_clock(context: Context) -> Iterator[Finding]:
    """The API server's clock agrees with this one."""
    if context.conf is not None and context.airflow_version < (3, 0):
        yield skip("Airflow 2 has no API server that is asked for connections")
        return
    yield from _clock(context, f"{base_url(context)}/airflow-envoy/jwks.json", "the API server")


def access_token(context: Context) -> Iterator[Finding]:
    """An access token can be fetched; what it is good for. Never shows it."""
    settings = context.settings
    if settings is None:
        yield skip("needs valid settings")
        return
    if not settings.has_provider:
        yield ok(
            "no OIDC provider is set, so no `Authorization` is added: Envoy needs `token: off` or `optional`"
        )
        return
    from airflow_envoy.access_token import AccessTokens

    took = 0.0
    # Twice if the first was slow: that one also loads code and discovers the endpoint, as a new process does.
    for _ in range(2):
        start = time.monotonic()
        try:
            token = AccessTokens(settings).token() or ""
        except Refusal as refusal:
            yield fail(
                f"{refusal.message} [{refusal.code}]",
                "the options token_url, oidc_issuer, client_… of section [airflow_envoy]",
            )
            return
        took = time.monotonic() - start
        if took < settings.token_timeout / 2:
            break
    claims = _claims(token)
    if claims is None:
        yield fail(
            f"a token came in {took * 1000:.0f} ms, but it is no JWT: Envoy cannot verify it",
            "ask the provider for JWT access tokens (RFC 9068); some need `resource` or `token_audience`",
        )
        return
    audience, expiry = claims.get("aud"), claims.get("exp")
    shown = ", ".join(map(str, audience)) if isinstance(audience, list) else str(audience)
    left = expiry - time.time() if isinstance(expiry, (int, float)) else None
    lives = "no `exp`" if left is None else f"expires in {left:.0f} s"
    text = f"fetched in {took * 1000:.0f} ms: iss `{claims.get('iss')}`, aud `{shown}`, {lives}"
    if audience is None or left is None:
        yield fail(
            f"{text}: Envoy refuses a token without `aud` or `exp`",
            "set `resource`, `token_audience` or `scope` as the provider wants it",
        )
    elif took > settings.token_timeout / 2:
        yield warn(
            f"{text}; that is more than half of token_timeout ({settings.token_timeout:g} s)",
            "find out why the provider is slow, or raise token_timeout",
        )
    elif left > LONG_TOKEN:
        yield warn(
            f"{text}; whoever gets hold of it has it for long",
            "have the provider issue tokens that live minutes",
        )
    else:
        yield ok(text)


def token_patience(context: Context) -> float:
    """Seconds for the check `access_token`: two fetches, each bounded by `token_timeout`."""
    most = context.settings.token_timeout if context.settings else 0.0
    return max(context.timeout, 2 * most + 0.5)


def _claims(token: str) -> dict[str, Any] | None:
    """A JWT's claims, unverified: only to show them."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return None
    return claims if isinstance(claims, dict) else None


def oidc_clock(context: Context) -> Iterator[Finding]:
    """The OIDC provider's clock agrees with this one."""
    settings = context.settings
    if settings is None or not settings.has_provider:
        yield skip("no OIDC provider is set")
        return
    # Any answer has a `Date`, also the refusal of a GET.
    url = settings.token_url or f"{(settings.oidc_issuer or '').rstrip('/')}/.well-known/openid-configuration"
    trusted = Context(**{**context.__dict__, "args": _with_ca(context, settings.ca_file)})
    yield from _clock(trusted, url, "the OIDC provider")


def _with_ca(context: Context, ca_file: Any) -> Any:
    import argparse

    return argparse.Namespace(**{**vars(context.args), "ca_file": str(ca_file) if ca_file else None})


def _clock(context: Context, url: str, whose: str) -> Iterator[Finding]:
    try:
        date = get(context, url).headers.get("date")
    except Unreachable as error:
        yield skip(f"{whose} was not reached: {error}")
        return
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        yield skip(f"{whose} sends no Date")
        return
    # A Date has whole seconds, rounded down: on average half a second has passed.
    off = context.memory[f"clock {url}"] - theirs - 0.5
    text = f"this host's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} that of {whose}"
    if abs(off) > CLOCK_REFUSED:
        yield fail(text, f"synchronise the clocks (NTP): Envoy allows {CLOCK_REFUSED} s by default")
    elif abs(off) > CLOCK_NOTED:
        yield warn(text, "synchronise the clocks (NTP)")
    else:
        yield ok(f"this host's clock agrees with that of {whose}")


def connection(context: Context) -> Iterator[Finding]:
    """The connection is marked well, and what it names can be reached."""
    yield from _named(context, context.args.connection)


def proxy(context: Context) -> Iterator[Finding]:
    """The same of proxy mode's connection, if proxy mode is on."""
    name = context.option("airflow_envoy", "proxy_connection")
    if not name:
        yield skip("proxy mode is off")
        return
    yield from _named(context, name, needs_port=True)


def _named(context: Context, name: str, *, needs_port: bool = False) -> Iterator[Finding]:
    if context.conf is None:
        yield skip("needs Airflow")
        return
    from airflow.exceptions import AirflowException
    from airflow.models import Connection

    try:
        found = Connection.get_connection_from_secrets(name)
    except AirflowException as error:
        yield fail(f"`{name}`: {str(error)[:200]}", "`airflow connections list` shows what this host sees")
        return
    yield from judge(context, name, found)
    yield from local.shadowing(name)
    if needs_port and not found.port:
        yield fail(
            f"`{name}` has no port: proxy mode needs host and port",
            "set them to those of Envoy's proxy listener",
        )
    elif found.host:
        yield from _reaches(context, name, found)


def judge(context: Context, name: str, found: Any) -> Iterator[Finding]:
    """What is wrong with a connection; one `OK` if nothing is."""
    problems = list(_problems(context, name, found))
    yield from problems
    if not any(problem.level.value == "FAIL" for problem in problems):
        yield ok(f"`{name}` is marked: `{NAME}: {_marker_text(found)}`")


def _marker_text(found: Any) -> str:
    extra = json.loads(found.extra)
    return next(str(value) for key, value in extra.items() if key.lower() == NAME.lower())


def _problems(context: Context, name: str, found: Any) -> Iterator[Finding]:
    example = f'{{"{NAME}": "on"}}'
    try:
        extra = json.loads(found.extra or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        yield fail(f"`{name}`: its extra is no JSON object", f"write {example}")
        return
    rest = dict(extra)
    try:
        marker = Marker.take(rest)
    except Refusal as refusal:
        yield fail(f"`{name}`: {refusal.message}", f"write {example}")
        return
    if marker is None:
        yield fail(f"`{name}` is not marked: nothing is added to it", f"add to its extra: {example}")
        return
    known = context.settings.audiences if context.settings else None
    if marker.audience is not None and known is not None and marker.audience not in known:
        yield fail(
            f"`{name}`: audience `{marker.audience}` is none of {', '.join(known)}",
            "add it to `audiences`, or correct the marker",
        )
    wrong = sorted(
        key for key, value in rest.items() if not isinstance(value, str) and key not in HOOK_OPTIONS
    )
    if wrong:
        yield fail(
            f"`{name}`: HttpHook sends {', '.join(f'`{key}`' for key in wrong)} as headers, and they are no "
            "strings",
            "write them as strings, or remove them",
        )
    if found.login and (context.settings is None or context.settings.has_provider):
        yield fail(
            f"`{name}` has a login: HttpHook then sends that (Basic) instead of the access token",
            "remove login and password; a credential for the upstream belongs into Envoy",
        )
    if not found.host:
        yield fail(
            f"`{name}` has no host",
            "set host and port to those of Envoy's listener, and `Host` in its extra to the upstream's name",
        )


def _reaches(context: Context, name: str, found: Any) -> Iterator[Finding]:
    url = found.host if "://" in found.host else f"{found.schema or 'http'}://{found.host}"
    address = urlsplit(url)
    try:
        port = found.port or address.port or {"https": 443}.get(address.scheme, 80)
    except ValueError:
        yield fail(
            f"`{name}`: `{found.host}` has no usable port", "set host and port to those of Envoy's listener"
        )
        return
    yield _connect(context, address.hostname or "", int(port), f"`{name}`: ")


def _connect(context: Context, host: str, port: int, prefix: str) -> Finding:
    start = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=context.timeout):
            pass
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return fail(
            f"{prefix}{host}:{port}: {reason}",
            "is Envoy running there, and the way open from here? (workers are who must reach it)",
        )
    return ok(f"{prefix}{host}:{port} is reached in {(time.monotonic() - start) * 1000:.0f} ms")


def envoy(context: Context) -> Iterator[Finding]:
    """Envoy answers; with a path, what the filter says of itself."""
    url = context.args.envoy if "://" in context.args.envoy else f"http://{context.args.envoy}"
    address = urlsplit(url)
    try:
        port = address.port or {"https": 443}.get(address.scheme, 80)
    except ValueError:
        port = None
    if not address.hostname or port is None or address.scheme not in ("http", "https"):
        yield fail(
            f"--envoy: `{context.args.envoy}` is no http or https URL",
            "such as http://127.0.0.1:10000/airflow-envoy/status",
        )
        return
    if address.path in ("", "/"):
        yield _connect(context, address.hostname, port, "")
        return
    try:
        answer = get(context, url)
    except Unreachable as error:
        yield fail(f"{url}: {error}", "is Envoy running there, and the way open from here?")
        return
    try:
        status = answer.json()
        yield from _status(url, answer.status_code, status, status["sources"])
    except (ValueError, KeyError, TypeError, AttributeError):
        yield fail(
            f"{url}: HTTP {answer.status_code}, which is no answer of the filter's status path",
            "set `status.path` in the filter's configuration to this path, or give --envoy without a path",
        )


def _status(url: str, code: int, status: dict[str, Any], sources: list[dict[str, Any]]) -> Iterator[Finding]:
    if status.get("mode") == "shadow":
        yield warn(
            "the filter is in mode `shadow`: it refuses nothing",
            "set `mode` to `enforce` when the decisions are what you want",
        )
    lines = []
    for source in sources:
        revision = f" revision {source['revision']}" if source.get("revision") is not None else ""
        age = "" if source.get("age_seconds") is None else f", confirmed {source['age_seconds']} s ago"
        version = f" version {source['version']}" if source["version"] else ""
        lines.append(f"{source['kind']} `{source['name']}`{version}{revision} ({source['count']}){age}")
        error = source.get("error")
        why = f": {error.get('reason')}" if isinstance(error, dict) else ""
        if not source["ready"]:
            yield fail(
                f"the filter cannot use {source['kind']} `{source['name']}`{why}",
                "is the cluster of this source right, and its server up?",
            )
        elif error:
            yield warn(
                f"the filter's last fetch of {source['kind']} `{source['name']}` failed{why}",
                "the old one is used until it is too old (`max_age`)",
            )
    if status.get("ready") is True and code == 200:
        yield ok(f"the filter is ready: {'; '.join(lines)}")
