"""A DAG that waits, deferred, and one that asks for a connection by a name of its run's configuration."""

from __future__ import annotations

import datetime

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG

ARGUMENTS = {
    "schedule": None,
    "start_date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    "catchup": False,
    "access_control": {"DataScience": {"DAGs": {"can_read", "can_edit"}}},
}

with DAG("ds_waits", default_args={"owner": "ada"}, **ARGUMENTS):
    HttpSensor(
        task_id="wait",
        http_conn_id="orders_api",
        endpoint="/v1/orders/ds_waits/wait?late=15000",
        poke_interval=1,
        timeout=120,
        deferrable=True,
    )

with DAG("ds_thief", default_args={"owner": "eve"}, params={"connection": "orders_plain"}, **ARGUMENTS):
    HttpOperator(
        task_id="steal",
        http_conn_id="{{ params.connection }}",
        endpoint="/v1/orders/ds_thief/steal",
        method="GET",
        deferrable=True,
    )
