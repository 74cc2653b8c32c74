"""Which task is calling the API server: the subject of Airflow's own task token, checked once more."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from ..refusal import Refusal

_KNOWN = 4096
_KNOWN_FOR = 30.0
"""Seconds for which a token that was validated is not validated again; no longer than it is valid."""


class Callers:
    """Validates task tokens as Airflow does, with a validator of its own: Airflow's is out of a middleware's
    reach.

    A task reads its connections several times with one token, so tokens that were valid are remembered for a
    moment, by their hash. Used from the event loop only.
    """

    def __init__(self) -> None:
        self._validator: Any = None
        self._known: OrderedDict[bytes, tuple[uuid.UUID, float]] = OrderedDict()

    async def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> uuid.UUID:
        """The id of the task instance that the request's token proves. Raises `Refusal` (`task_unknown`)."""
        try:
            # It may have to fetch keys from `[api_auth] trusted_jwks_url`; its HTTP client gives up after 5
            # s.
            token = _token(headers)
            digest = hashlib.sha256(token.encode("ascii")).digest()
            ti_id, until = self._known.get(digest, (None, 0.0))
            if ti_id is not None and time.time() < until:
                return ti_id
            claims = await self._validated(token)
            # `workload` tokens only start a task. Airflow 3.0 and 3.1 have but one kind, without a scope.
            if claims.get("scope", "execution") != "execution":
                raise ValueError("another scope")
            ti_id = uuid.UUID(claims["sub"])
            self._remember(digest, ti_id, float(claims["exp"]))
            return ti_id
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no proof
            raise Refusal(
                "task_unknown",
                "the request has no valid task token of Airflow; a marked connection is only for running "
                "tasks "
                f"({type(error).__name__})",
            ) from None

    def _remember(self, digest: bytes, ti_id: uuid.UUID, expires: float) -> None:
        self._known[digest] = (ti_id, min(time.time() + _KNOWN_FOR, expires))
        self._known.move_to_end(digest)
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    async def _validated(self, token: str) -> dict[str, Any]:
        if self._validator is None:
            self._validator = _validator()
        claims: dict[str, Any] = await self._validator.avalidated_claims(token, {})
        return claims


def _token(headers: Iterable[tuple[bytes, bytes]]) -> str:
    # The first header is the one that Airflow itself has accepted. `simple_auth_manager_all_admins` appends
    # another one.
    for name, value in headers:
        if name.lower() == b"authorization":
            scheme, _, token = value.decode("ascii").partition(" ")
            if scheme.lower() != "bearer":
                break
            return token.strip()
    raise ValueError("no bearer token")


def _validator() -> Any:
    from airflow.api_fastapi.auth.tokens import JWTValidator, get_sig_validation_args
    from airflow.configuration import conf

    required = {"aud", "exp", "iat", "sub"}
    issuer = conf.get("api_auth", "jwt_issuer", fallback=None) or None
    if issuer:
        required.add("iss")
    return JWTValidator(
        required_claims=frozenset(required),
        issuer=issuer,
        audience=conf.get_mandatory_list_value("execution_api", "jwt_audience"),
        **get_sig_validation_args(make_secret_key_if_needed=False),
    )
