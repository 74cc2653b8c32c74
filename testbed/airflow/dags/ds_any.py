"""Makes the calls that its run's configuration lists, one task each: `connection`, `path`, `headers`, `times`.

Each task returns what came back, and how long reading the connection took; it fails if the connection cannot be read.
"""

from __future__ import annotations

import datetime
import time

from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import DAG, get_current_context, task

with DAG(
    "ds_any",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1),
    catchup=False,
    params={"calls": []},
    default_args={"owner": "ada"},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):

    @task
    def calls() -> list[dict]:
        return get_current_context()["params"]["calls"]

    @task
    def call(asked: dict) -> list[dict]:
        hook = HttpHook(method="GET", http_conn_id=asked["connection"])
        answers = []
        for _ in range(asked.get("times", 1)):
            begun = time.monotonic()
            try:
                hook.get_connection(asked["connection"])
            finally:
                seconds = time.monotonic() - begun
                print(f"reading the connection took {seconds:.3f} s")
            response = hook.run(
                asked.get("path", "/v1/orders/ds_any/call"),
                headers=asked.get("headers"),
                extra_options={"check_response": False},
            )
            answers.append({"status": response.status_code, "body": response.json(), "seconds": seconds})
        return answers

    call.expand(asked=calls())
