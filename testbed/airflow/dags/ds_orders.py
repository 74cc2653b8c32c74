"""Reads orders in the usual ways: an operator, a sensor, mapped tasks with a hook."""

from __future__ import annotations

import datetime

from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG, task

with DAG(
    "ds_orders",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    tags=["orders", "churn"],
    default_args={"owner": "ada"},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):
    ready = HttpSensor(
        task_id="ready",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_orders/ready",
        poke_interval=1,
        timeout=60,
    )
    read = HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_orders/read",
        method="GET",
        log_response=True,
    )

    @task
    def fetch(number: int) -> int:
        response = HttpHook(method="GET", http_conn_id="orders_api").run(f"/v1/orders/ds_orders/{number}")
        return response.status_code

    [ready, read] >> fetch.expand(number=[1, 2, 3])
