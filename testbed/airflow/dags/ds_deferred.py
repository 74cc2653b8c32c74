"""Waits without a worker: a deferrable operator and a deferrable sensor."""

from __future__ import annotations

import datetime

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG

with DAG(
    "ds_deferred",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    default_args={"owner": "ada"},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):
    HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_deferred/read",
        method="GET",
        deferrable=True,
    )
    HttpSensor(
        task_id="ready",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_deferred/ready?once=404",
        poke_interval=1,
        timeout=60,
        deferrable=True,
    )
