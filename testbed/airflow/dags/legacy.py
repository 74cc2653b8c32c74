"""Airflow 2.10 and 2.11: an operator, a sensor, and mapped tasks with a hook."""

from __future__ import annotations

import datetime

from airflow import DAG
from airflow.decorators import task
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor

with DAG(
    "legacy",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    tags=["pii"],
    default_args={"owner": "alice"},
):
    get = HttpOperator(task_id="get", http_conn_id="orders_api", endpoint="/v1/orders", method="GET")
    sense = HttpSensor(
        task_id="sense",
        http_conn_id="orders_api",
        endpoint="/v1/orders/sensed",
        method="GET",
        poke_interval=1,
        timeout=60,
    )

    @task
    def fetch(number: int) -> int:
        from airflow.providers.http.hooks.http import HttpHook

        hook = HttpHook(method="GET", http_conn_id="orders_api")
        return hook.run(f"/v1/orders/{number}").status_code

    get >> sense >> fetch.expand(number=[1, 2])
