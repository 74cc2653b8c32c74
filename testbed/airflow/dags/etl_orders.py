"""Reads orders, which nobody has allowed it to."""

from __future__ import annotations

import datetime

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

with DAG(
    "etl_orders",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    default_args={"owner": "eve"},
):
    HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/etl_orders/read",
        method="GET",
    )
