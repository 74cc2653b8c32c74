"""Airflow's own API tokens in the testbed: asymmetric keys for them, and tokens of chosen task instances.

    api_tokens.py keys FOLDER           makes FOLDER/private.pem and FOLDER/jwks.json (Ed25519)
    api_tokens.py task TASK_INSTANCE_ID [SCOPE]
                                        prints the token that this task instance's supervisor would
                                        hold (scope `execution`), or that waited in the queue (`workload`)

The second one needs Airflow's settings in its environment: it signs with Airflow's own key, by Airflow's own
code. Only whoever may read that key can do so.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

KEY_ID = "airflow-api"


def keys(folder: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(
        os.open(folder / "private.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
    ) as file:
        file.write(private)
    x = base64.urlsafe_b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    public = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": KEY_ID}
    document = {"keys": [{**public, "x": x.rstrip(b"=").decode()}]}
    (folder / "jwks.json").write_text(json.dumps(document))


def task(task_instance_id: str, scope: str = "execution") -> str:
    from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
    from airflow.configuration import conf

    generator = JWTGenerator(
        valid_for=conf.getint("execution_api", "jwt_expiration_time"),
        audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
        issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
        **get_signing_args(make_secret_key_if_needed=False),
    )
    return generator.generate(extras={"sub": task_instance_id, "scope": scope})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keys", folder]:
            keys(Path(folder))
        case ["task", task_instance_id, *scope]:
            print(task(task_instance_id, *scope))
        case _:
            sys.exit(__doc__)
