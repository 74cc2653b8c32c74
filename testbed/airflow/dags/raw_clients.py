"""Calls that no Airflow hook makes: requests, httpx, urllib, aiohttp and curl.

`url` is what they call. With `seconds`, the first task calls again and again for that long.
"""

from __future__ import annotations

import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task

with DAG(
    "raw_clients",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    tags=["pii"],
    default_args={"owner": "bob"},
    params={"url": "http://orders.internal/v1/orders", "seconds": 0},
):

    @task
    def by_requests(params: dict | None = None) -> int:
        import time

        import requests

        until = time.monotonic() + params["seconds"]
        while True:
            answer = requests.get(params["url"] + "/requests", timeout=10)
            answer.raise_for_status()
            if time.monotonic() >= until:
                return answer.status_code
            time.sleep(0.5)

    @task
    def by_httpx(params: dict | None = None) -> int:
        import httpx

        answer = httpx.get(params["url"] + "/httpx", timeout=10)
        answer.raise_for_status()
        return answer.status_code

    @task
    def by_urllib(params: dict | None = None) -> int:
        import urllib.request

        with urllib.request.urlopen(params["url"] + "/urllib", timeout=10) as answer:  # noqa: S310 - the DAG's own URL
            return answer.status

    @task
    def by_aiohttp(params: dict | None = None) -> int:
        import asyncio

        import aiohttp

        async def call() -> int:
            async with (
                aiohttp.ClientSession(trust_env=True, raise_for_status=True) as session,
                session.get(params["url"] + "/aiohttp") as answer,
            ):
                return answer.status

        return asyncio.run(call())

    by_curl = BashOperator(
        task_id="by_curl",
        bash_command="curl --silent --show-error --fail --max-time 10 '{{ params.url }}/curl'",
    )

    by_requests() >> by_httpx() >> by_urllib() >> by_aiohttp() >> by_curl
