"""The facts about a task instance, from a real (if small) metadata database with Airflow's own models."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

pytest.importorskip("airflow.models.dag_version", reason="tier 1 is for Airflow 3")

import sqlalchemy as sa
from airflow import settings
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dag_version import DagVersion
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.session import create_session

from airflow_envoy import database
from airflow_envoy.refusal import Refusal

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    import_all_models()
    Base.metadata.create_all(settings.engine)
    yield
    Base.metadata.drop_all(settings.engine)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    def clean() -> None:
        database._query.cache_clear()
        database._dags.clear()
        with create_session() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())

    clean()
    yield
    clean()


def table(name: str) -> Any:
    return Base.metadata.tables[name]


def serialized(dag_id: str, **arguments: Any) -> Any:
    """A DAG as Airflow itself serializes it."""
    from airflow.sdk import DAG, BaseOperator
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    with DAG(dag_id, schedule=None, start_date=NOW, **arguments) as dag:
        BaseOperator(task_id="load")
    return LazyDeserializedDAG.from_dag(dag)


def add(session: Any, table_name: str, **values: Any) -> None:
    columns = table(table_name)
    filled = dict(values)
    for column in columns.columns:
        needs = not column.nullable and column.default is None and column.server_default is None
        if needs and column.name not in filled and not (column.primary_key and column.autoincrement is True):
            if isinstance(column.type, sa.Integer) and column.primary_key:
                continue
            python = column.type.python_type if hasattr(column.type, "python_type") else str
            filled[column.name] = NOW if python is datetime else python()
    session.execute(columns.insert().values(**filled))


def version(session: Any, dag_id: str, number: int, **arguments: Any) -> uuid.UUID:
    model = DagVersion(dag_id=dag_id, version_number=number, bundle_name="bundle")
    session.add(model)
    session.flush()
    row = SerializedDagModel(serialized(dag_id, **arguments))
    row.dag_version_id = model.id
    session.add(row)
    session.flush()
    return model.id


def task(state: str | None = "running", dag_id: str = "sales", **arguments: Any) -> uuid.UUID:
    """A DAG with one version, one run and one task instance."""
    ti_id = uuid.uuid4()
    with create_session() as session:
        add(session, "dag_bundle", name="bundle", active=True)
        add(session, "dag", dag_id=dag_id, bundle_name="bundle", owners="alice, bob", max_active_tasks=1)
        version_id = version(session, dag_id, 1, **arguments)
        add(session, "log_template", id=1, filename="f", elasticsearch_id="e", created_at=NOW)
        add(
            session,
            "dag_run",
            dag_id=dag_id,
            run_id="manual__1",
            run_type="manual",
            run_after=NOW,
            triggering_user_name="ann",
            log_template_id=1,
        )
        add(
            session,
            "task_instance",
            id=database._query().identifier(ti_id),
            dag_id=dag_id,
            task_id="load",
            run_id="manual__1",
            map_index=4,
            try_number=2,
            state=state,
            queue="q",
            pool="p",
            pool_slots=1,
            hostname="worker-1",
            dag_version_id=version_id,
        )
    return ti_id


CONTROL = {"Sales": {"DAGs": {"can_edit", "can_read"}}, "Audit": {"DAGs": {"can_read"}}}


def test_all_facts_of_a_running_task(monkeypatch: pytest.MonkeyPatch) -> None:
    ti_id = task(tags=["pii", "a"], access_control=CONTROL)
    facts = database.task_instance(ti_id)
    assert facts.claims() == {
        "dag_id": "sales",
        "task_id": "load",
        "run_id": "manual__1",
        "map_index": 4,
        "try_number": 2,
        "ti_id": str(ti_id),
        "state": "running",
        "queue": "q",
        "pool": "p",
        "hostname": "worker-1",
        "run_type": "manual",
        "owners": ["alice", "bob"],
        "tags": ["a", "pii"],
        "roles": ["Sales"],
        "team": None,
        "triggering_user_name": "ann",
        "tier": "server",
    }


def test_roles_can_be_left_out() -> None:
    assert database.task_instance(task(access_control=CONTROL), roles=False).roles is None


def test_a_dag_without_tags_and_access_control_is_known_to_have_none() -> None:
    facts = database.task_instance(task())
    assert (facts.tags, facts.roles) == ((), ())


@pytest.mark.parametrize("state", [None, "success", "failed", "deferred", "queued"])
def test_the_state_is_told_whatever_it_is(state: str | None) -> None:
    assert database.task_instance(task(state)).state == state


def test_a_task_instance_that_is_not_there_is_unknown() -> None:
    with pytest.raises(Refusal) as caught:
        database.task_instance(uuid.uuid4())
    assert caught.value.code == "task_unknown"


def test_a_new_version_of_the_dag_acts_at_the_next_read() -> None:
    ti_id = task(tags=["old"], access_control=CONTROL)
    assert database.task_instance(ti_id).tags == ("old",)
    with create_session() as session:
        version(session, "sales", 2, tags=["new"], access_control={"Other": {"DAGs": {"can_edit"}}})
    facts = database.task_instance(ti_id)
    assert (facts.tags, facts.roles) == (("new",), ("Other",))


def test_a_version_that_is_written_over_acts_at_the_next_read() -> None:
    ti_id = task(access_control=CONTROL)
    assert database.task_instance(ti_id).roles == ("Sales",)
    changed = SerializedDagModel(serialized("sales", access_control={}))
    with create_session() as session:
        columns = table("serialized_dag")
        session.execute(columns.update().values(data=changed._data, dag_hash=changed.dag_hash))
    assert database.task_instance(ti_id).roles == ()


def test_the_serialized_dag_is_read_once_for_each_version(monkeypatch: pytest.MonkeyPatch) -> None:
    ti_id = task(tags=["a"])
    reads: list[Any] = []
    read = database._read_dag
    monkeypatch.setattr(database, "_read_dag", lambda *a: (reads.append(a), read(*a))[1])
    for _ in range(5):
        assert database.task_instance(ti_id).tags == ("a",)
    assert len(reads) == 1


def test_one_query_brings_the_facts_of_a_known_dag() -> None:
    ti_id = task()
    database.task_instance(ti_id)
    statements: list[str] = []
    listener = lambda *a: statements.append(a[2])  # noqa: E731
    sa.event.listen(settings.engine, "before_cursor_execute", listener)
    try:
        database.task_instance(ti_id)
    finally:
        sa.event.remove(settings.engine, "before_cursor_execute", listener)
    assert len(statements) == 1


def test_a_compressed_dag_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[SerializedDagModel.__module__]
    name = "_COMPRESS_SERIALIZED_DAGS"
    monkeypatch.setattr(module, name if hasattr(module, name) else name[1:], True)
    assert database.task_instance(task(tags=["z"], access_control=CONTROL)).roles == ("Sales",)


@pytest.mark.parametrize("data", [{}, {"dag": []}, {"dag": None}, []])
def test_a_serialized_dag_that_cannot_be_read_leaves_tags_and_roles_unknown(
    data: Any, records: Callable[[], list[dict[str, Any]]]
) -> None:
    ti_id = task(tags=["a"], access_control=CONTROL)
    with create_session() as session:
        session.execute(table("serialized_dag").update().values(data=data))
    facts = database.task_instance(ti_id)
    assert (facts.tags, facts.roles) == (None, None)
    assert [line["event"] for line in records()] == ["dag_unreadable"]


def test_without_a_serialized_dag_tags_and_roles_are_unknown() -> None:
    ti_id = task(tags=["a"])
    with create_session() as session:
        session.execute(table("serialized_dag").delete())
    facts = database.task_instance(ti_id)
    assert (facts.tags, facts.roles) == (None, None)
    assert "tags" not in facts.claims()


def test_the_team_is_that_of_the_dags_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    ti_id = task()
    teams = Base.metadata.tables.get("dag_bundle_team")
    if teams is None or "team_name" not in teams.c:  # before Airflow 3.2
        assert "team" not in database.task_instance(ti_id).claims()
        return
    assert database.task_instance(ti_id).claims()["team"] is None
    with create_session() as session:
        add(session, "team", name="data")
        add(session, "dag_bundle_team", dag_bundle_name="bundle", team_name="data")
    assert database.task_instance(ti_id).team == "data"


def test_a_column_that_an_older_airflow_lacks_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    ti_id = task()
    query = database._query()
    older = database._Query(query.statement, query.id_is_text, query.has_teams, has_user=False)
    monkeypatch.setattr(database, "_query", lambda: older)
    assert "triggering_user_name" not in database.task_instance(ti_id).claims()


def test_an_id_of_text_is_asked_for_as_text() -> None:
    ti_id = uuid.uuid4()
    assert database._Query(None, True, False, False).identifier(ti_id) == str(ti_id)
    assert database._Query(None, False, False, False).identifier(ti_id) is ti_id


def test_an_error_of_the_database_is_a_refusal_that_tells_no_sql(
    monkeypatch: pytest.MonkeyPatch, records: Callable[[], list[dict[str, Any]]]
) -> None:
    ti_id = task()
    broken = sa.create_engine("sqlite:////nonexistent/folder/db.sqlite")
    monkeypatch.setattr(settings, "engine", broken)
    with pytest.raises(Refusal) as caught:
        database.task_instance(ti_id)
    assert caught.value.code == "database_unavailable"
    for text in (caught.value.text, str(records())):
        assert "SELECT" not in text
        assert "nonexistent" not in text
    assert len(records()) == 1
