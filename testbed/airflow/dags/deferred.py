"""Calls that wait: an operator that defers, and a sensor that does."""

from __future__ import annotations

import datetime

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG

with DAG(
    "deferred",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    tags=["pii"],
    # A trigger that fires at once can overtake the executor's word that its task has deferred; Airflow then
    # fails the try.
    default_args={"owner": "carol", "retries": 2, "retry_delay": datetime.timedelta(seconds=2)},
):
    get = HttpOperator(
        task_id="get",
        http_conn_id="orders_api",
        endpoint="/v1/orders/deferred",
        method="GET",
        deferrable=True,
    )
    sense = HttpSensor(
        task_id="sense",
        http_conn_id="orders_api",
        endpoint="/v1/orders/sensed",
        method="GET",
        poke_interval=1,
        timeout=60,
        deferrable=True,
        response_check=None,
    )
    get >> sense
