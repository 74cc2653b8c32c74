"""The key sets, the plugin as Airflow loads it, and the reason in a task's log."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_envoy import issuer as issuer_module
from airflow_envoy.issuer import Issuer
from airflow_envoy.settings import Settings

pytest.importorskip("airflow.api_fastapi.auth.tokens", reason="tier 1 is for Airflow 3")

from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args

from airflow_envoy import reason
from airflow_envoy.server.plugin import AirflowEnvoyPlugin
from airflow_envoy.server.routes import key_sets


def get(path: str, method: str = "GET", root: str = "") -> tuple[int, dict[str, str], Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def scenario() -> None:
        scope = {"type": "http", "method": method, "path": root + path, "root_path": root, "headers": []}
        await key_sets(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(scenario())
    body = sent[1]["body"]
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(body) if body else None


@pytest.fixture
def issuer(settings_of: Callable[..., Settings], no_issuer: None) -> Issuer:
    made = Issuer(settings_of())
    issuer_module._made = (os.getpid(), made)
    return made


@pytest.mark.parametrize("root", ["", "/airflow-envoy", "/deep/airflow-envoy"])
def test_the_identity_keys_are_for_anybody_to_read(issuer: Issuer, root: str) -> None:
    status, headers, document = get("/jwks.json", root=root)
    assert (status, document) == (200, issuer.jwks())
    assert headers["cache-control"] == "public, max-age=60"
    assert headers["content-type"] == "application/json"
    assert get("/jwks.json", "HEAD", root)[::2] == (200, None)
    assert get("/jwks.json", "POST", root)[0] == 405
    assert get("/", root=root)[0] == 404


def test_keys_that_cannot_be_read_are_a_503_without_details(no_issuer: None) -> None:
    status, headers, document = get("/jwks.json")
    assert (status, headers["cache-control"]) == (503, "no-store")
    assert document["detail"]["code"] == "settings_invalid"


def pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


@pytest.mark.parametrize("kid", [None, "af-1"])
@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)],
    ids=["Ed25519", "RSA"],
)
def test_airflows_own_public_key_verifies_airflows_own_tokens(
    key: Any, kid: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "airflow.pem"
    path.write_bytes(pem(key))
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH", str(path))
    if kid:
        monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_KID", kid)
    token = JWTGenerator(valid_for=60, audience="a", **get_signing_args()).generate({"sub": "x"})
    status, _, document = get("/airflow-jwks.json")
    assert status == 200
    (published,) = document["keys"]
    assert published["kid"] == jwt.get_unverified_header(token)["kid"]
    algorithm = jwt.get_unverified_header(token)["alg"]
    assert published["alg"] == algorithm
    assert not {"d", "p", "q", "k"} & set(published)
    public = jwt.PyJWKSet.from_dict(document).keys[0].key
    assert jwt.decode(token, public, algorithms=[algorithm], audience="a")["sub"] == "x"


def test_without_a_key_pair_airflow_has_nothing_to_publish() -> None:
    status, _, document = get("/airflow-jwks.json")
    assert status == 404
    assert "jwt_private_key_path" in document["detail"]


def test_a_key_set_on_disk_is_published_without_its_private_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1())))
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [{**private, "kid": "a"}, secret]}))
    monkeypatch.setenv("AIRFLOW__API_AUTH__TRUSTED_JWKS_URL", str(path))
    status, _, document = get("/airflow-jwks.json")
    assert status == 200
    assert [set(key) for key in document["keys"]] == [{"kty", "crv", "x", "y", "kid"}]
    path.write_text("{")
    assert get("/airflow-jwks.json")[0] == 503


def test_keys_that_are_published_elsewhere_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__TRUSTED_JWKS_URL", "https://idp.test/jwks")
    status, _, document = get("/airflow-jwks.json")
    assert (status, "trusted_jwks_url" in document["detail"]) == (404, True)


def test_airflow_loads_the_plugin_once_and_by_its_entry_point() -> None:
    from importlib.metadata import entry_points

    found = [point for point in entry_points(group="airflow.plugins") if point.name == "airflow_envoy"]
    if not found:
        pytest.skip("the package is not installed")
    assert len(found) == 1
    assert found[0].load() is AirflowEnvoyPlugin


def test_a_task_that_loads_the_plugin_imports_nothing_of_the_server() -> None:
    code = "import sys, airflow_envoy.server.plugin; print([m for m in sys.modules if 'airflow_envoy' in m])"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    loaded = shown.stdout.strip().splitlines()[-1]
    assert "airflow_envoy.server.plugin" in loaded
    for name in ("middleware", "routes", "issuer", "access_token", "keys"):
        assert name not in loaded


def test_the_api_server_takes_the_plugin_as_it_is(issuer: Issuer) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    app = FastAPI(root_path="/airflow")
    for item in AirflowEnvoyPlugin.fastapi_apps:
        app.mount(item["url_prefix"], item["app"])
    for item in AirflowEnvoyPlugin.fastapi_root_middlewares:
        app.add_middleware(item["middleware"], *item["args"], **item["kwargs"])
    with TestClient(app) as client:
        assert client.get("/airflow-envoy/jwks.json").json() == issuer.jwks()
        assert client.get("/airflow/airflow-envoy/jwks.json").json() == issuer.jwks()
        assert client.get("/execution/connections/a").status_code == 404


class AirflowSecretsBackendAccessDenied(PermissionError):
    """Named as Airflow's own."""


def chained() -> BaseException:
    try:
        try:
            raise AirflowSecretsBackendAccessDenied("x")
        except PermissionError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        return error


@pytest.fixture
def in_task(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A task's process, with what its variable will be."""
    answers: list[Any] = []
    runner = types.ModuleType("airflow.sdk.execution_time.task_runner")
    runner.SUPERVISOR_COMMS = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "airflow.sdk.execution_time.task_runner", runner)
    from airflow.sdk import Variable

    def answer(key: str, default: Any = None) -> Any:
        assert key.partition("!")[0] == "airflow_envoy_refusal"
        answer = answers.pop()
        return answer(key) if callable(answer) else answer

    monkeypatch.setattr(Variable, "get", answer)
    return answers


@pytest.mark.parametrize(
    "error", [AirflowSecretsBackendAccessDenied("x"), chained()], ids=["plain", "chained"]
)
def test_the_reason_is_written_to_the_tasks_log(
    error: BaseException, in_task: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    in_task.append("airflow-envoy: do this [task_unknown]")
    with caplog.at_level("INFO", "airflow_envoy"):
        reason.on_task_instance_failed(task_instance=None, error=error)
    assert [r.getMessage() for r in caplog.records] == ["airflow-envoy: do this [task_unknown]"]
    assert caplog.records[0].levelname == "ERROR"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "Access denied for connection 'orders_api' by Execution API; refusing to fall back",
            "airflow_envoy_refusal!orders_api",
        ),
        ("The conn_id `orders_api` isn't defined", "airflow_envoy_refusal!orders_api"),
        ("something else", "airflow_envoy_refusal"),
        ("Access denied for connection 'a/b' by", "airflow_envoy_refusal"),
    ],
)
def test_the_connection_is_named_as_airflow_names_it(
    text: str, name: str, in_task: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    in_task.append(lambda key: f"airflow-envoy: {key}")
    reason.on_task_instance_failed(task_instance=None, error=AirflowSecretsBackendAccessDenied(text))
    assert [r.getMessage() for r in caplog.records] == [f"airflow-envoy: {name}"]


def test_without_a_reason_the_log_says_where_to_look(
    in_task: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    in_task.append(None)
    with caplog.at_level("INFO", "airflow_envoy"):
        reason.on_task_instance_failed(
            task_instance=types.SimpleNamespace(id="ti-1"), error=AirflowSecretsBackendAccessDenied()
        )
    assert "API server's log" in caplog.text
    assert "ti-1" in caplog.text


@pytest.mark.parametrize("error", [None, "text", ValueError("x")])
def test_another_failure_asks_nothing(error: Any, in_task: list[Any]) -> None:
    in_task.append("never read")
    reason.on_task_instance_failed(task_instance=None, error=error)
    assert in_task == ["never read"]


def test_outside_of_a_task_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "airflow.sdk.execution_time.task_runner", raising=False)
    assert not reason._in_task()
    reason.on_task_instance_failed(task_instance=None, error=AirflowSecretsBackendAccessDenied())


def test_an_error_that_is_its_own_cause_does_not_hang() -> None:
    error = ValueError()
    error.__context__ = RuntimeError()
    error.__context__.__context__ = error
    assert reason._refusal(error) is None
