"""Tries again after a failure: the order's server fails the first call of each run."""

from __future__ import annotations

import datetime

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

with DAG(
    "ds_retry",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    default_args={"owner": "ada", "retries": 1, "retry_delay": datetime.timedelta(seconds=1)},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):
    HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_retry/read?once=500",
        method="GET",
    )
