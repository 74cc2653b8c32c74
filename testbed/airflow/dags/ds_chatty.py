"""Says too much: writes its connection and the headers of its request to its log."""

from __future__ import annotations

import datetime
import json

from airflow.providers.http.hooks.http import HttpHook
from airflow.sdk import DAG, task

with DAG(
    "ds_chatty",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    default_args={"owner": "ada"},
    access_control={"DataScience": {"DAGs": {"can_read", "can_edit"}}},
):

    @task
    def talk() -> dict:
        hook = HttpHook(method="GET", http_conn_id="orders_api")
        connection = hook.get_connection("orders_api")
        print(connection.extra)
        print(connection.extra_dejson)
        print(repr(connection))
        session = hook.get_conn({})
        print(dict(session.headers))
        print("the values alone:", *session.headers.values())
        response = hook.run("/v1/orders/ds_chatty/talk")
        print(response.request.headers)
        return json.loads(response.text)

    talk()
