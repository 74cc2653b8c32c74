"""Makes the calls that its run's configuration lists, in order.

A call has a `connection`, and may have `path`, `headers`, `times` and a `pause` in seconds after each time.
What came back is returned, with the seconds that reading the connection took; one that cannot be read is one
more answer, unless the call is a `must`: then it ends the task.
With `until`, the task goes on running until that file is there, for two minutes at most.
"""

from __future__ import annotations

import datetime
import os
import time

from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import DAG, get_current_context, task

with DAG(
    "ds_any",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    params={"calls": [], "until": ""},
    default_args={"owner": "ada"},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):

    @task
    def call() -> list[dict]:
        params = get_current_context()["params"]
        answers = []
        for asked in params["calls"]:
            for _ in range(asked.get("times", 1)):
                answers.append(_answer(asked))
                time.sleep(asked.get("pause", 0))
        deadline = time.monotonic() + 120
        while params["until"] and not os.path.exists(params["until"]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return answers

    def _answer(asked: dict) -> dict:
        hook = HttpHook(method="GET", http_conn_id=asked["connection"])
        begun = time.monotonic()
        try:
            hook.get_connection(asked["connection"])
        except Exception as error:
            if asked.get("must"):
                raise
            return {"refused": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - begun}
        seconds = time.monotonic() - begun
        path = asked.get("path", "/v1/orders/ds_any/call")
        response = hook.run(path, headers=asked.get("headers"), extra_options={"check_response": False})
        return {"status": response.status_code, "body": response.json(), "seconds": seconds}

    call()
