"""Reads orders on Airflow 2: an operator, and mapped tasks with a hook."""

from __future__ import annotations

import datetime

from airflow import DAG
from airflow.decorators import task
from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.operators.http import HttpOperator

with DAG(
    "ds_legacy",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    tags=["orders"],
    default_args={"owner": "ada"},
    access_control={"DataScience": {"can_read", "can_edit"}},
):
    read = HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_legacy/read",
        method="GET",
    )

    @task
    def fetch(number: int) -> int:
        response = HttpHook(method="GET", http_conn_id="orders_api").run(f"/v1/orders/ds_legacy/{number}")
        return response.status_code

    read >> fetch.expand(number=[1, 2])
