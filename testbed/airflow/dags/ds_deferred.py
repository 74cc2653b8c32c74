"""Waits without a worker: a deferrable operator and a deferrable sensor.

They try again: a trigger that fires before the scheduler has heard that its task was deferred costs the task
that try.
"""

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
    default_args={"owner": "ada", "retries": 2, "retry_delay": datetime.timedelta(seconds=1)},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):
    HttpOperator(
        task_id="read",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_deferred/read?delay=6000",
        method="GET",
        deferrable=True,
    )
    HttpSensor(
        task_id="ready",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_deferred/ready?late=6000",
        poke_interval=1,
        timeout=60,
        deferrable=True,
    )
