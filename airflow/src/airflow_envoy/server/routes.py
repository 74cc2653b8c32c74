"""The key sets: `/airflow-envoy/jwks.json` and `/airflow-envoy/airflow-jwks.json`, for anybody to read.

They are two documents on purpose: a key that may sign tokens for Airflow's own API must not be able to sign
an identity.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from logging import ERROR
from pathlib import Path
from typing import Any

from ..issuer import Issuer
from ..record import fault, record
from ..refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PUBLIC = frozenset(
    {"kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "x5c", "x5t", "x5t#S256"}
)


class NotFoundError(Exception):
    """There is no such key set, and why."""


async def key_sets(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application below `/airflow-envoy`."""
    if scope["type"] != "http":
        return
    reader = {"/jwks.json": _identity_keys, "/airflow-jwks.json": _airflow_keys}.get(_route(scope))
    if reader is None:
        await _answer(scope, send, 404, {"detail": "Not Found"})
    elif scope["method"] not in ("GET", "HEAD"):
        await _answer(scope, send, 405, {"detail": "Method Not Allowed"}, {"allow": "GET, HEAD"})
    else:
        status, document = await asyncio.to_thread(_read, reader)
        cache = "public, max-age=60" if status == 200 else "no-store"
        await _answer(scope, send, status, document, {"cache-control": cache})


def _route(scope: Scope) -> str:
    """The path below where this is mounted, whether or not a proxy has taken `[api] base_url`'s path off."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    mounted = root[len(str(scope.get("app_root_path", ""))) :]
    for prefix in (root, mounted):
        if prefix and path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return path


def _read(reader: Callable[[], dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    try:
        return 200, reader()
    except NotFoundError as error:
        return 404, {"detail": str(error)}
    except Refusal as refusal:
        return 503, {"detail": refusal.detail()}
    except Exception as error:  # noqa: BLE001 - Airflow's own handler would show more than a stranger should see
        record(ERROR, "key_set_unavailable", cause=fault(error))
        return 503, {"detail": "The keys cannot be read: see the API server's log"}


def _identity_keys() -> dict[str, Any]:
    return Issuer.current().jwks()


def _airflow_keys() -> dict[str, Any]:
    """The public keys of the tokens for Airflow's own API, as far as Airflow's configuration knows them."""
    from airflow.configuration import conf

    trusted = conf.get("api_auth", "trusted_jwks_url", fallback=None)
    if trusted:
        if trusted.startswith(("http://", "https://")):
            raise NotFoundError("These keys are published where `[api_auth] trusted_jwks_url` points to")
        document = json.loads(Path(trusted).read_text("utf-8"))
        # What is on disk may hold more than may be shown: private members, and secrets of the kind `oct`.
        keys = [key for key in document["keys"] if key.get("kty") in ("RSA", "EC", "OKP")]
        return {"keys": [{name: key[name] for name in key if name in _PUBLIC} for key in keys]}
    path = conf.get("api_auth", "jwt_private_key_path", fallback=None)
    if not path:
        raise NotFoundError(
            "Airflow signs its tokens with a shared secret, which has no public key: "
            "set `[api_auth] jwt_private_key_path` for one"
        )
    return {"keys": [_airflow_key(Path(path), conf)]}


def _airflow_key(path: Path, conf: Any) -> dict[str, Any]:
    from airflow.api_fastapi.auth.tokens import get_sig_validation_args, key_to_jwk_dict
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private: Any = load_pem_private_key(path.read_bytes(), password=None)
    # With Airflow's own function: the `kid` in its tokens is Airflow's idea of a thumbprint.
    jwk = key_to_jwk_dict(private.public_key(), kid=conf.get("api_auth", "jwt_kid", fallback=None) or None)
    # Airflow's guess, unless it is configured: it differs between versions.
    algorithm = get_sig_validation_args(make_secret_key_if_needed=False)["algorithm"]
    if isinstance(algorithm, (list, tuple)):
        algorithm = algorithm[0]
    return {**{name: jwk[name] for name in jwk if name in _PUBLIC}, "alg": algorithm, "use": "sig"}


async def _answer(
    scope: Scope, send: Send, status: int, document: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    body = json.dumps(document, separators=(",", ":")).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
