"""The facts about a task instance, from Airflow's metadata database. For the API server and the triggerer's
supervisor.

One query brings everything that can change while a task runs. What is written in the DAG itself (tags, roles)
is read when the query shows another version of the serialized DAG than the one that is known.
"""

from __future__ import annotations

import json
import threading
import uuid
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from logging import ERROR
from typing import Any

from .identity import UNKNOWN, Task, Unknown, editors, owners
from .record import record
from .refusal import Refusal

_KNOWN_DAGS = 4096


@dataclass(frozen=True, slots=True)
class _Dag:
    """What a serialized DAG says. None: unknown."""

    tags: tuple[str, ...] | None
    roles: tuple[str, ...] | None


def task_instance(ti_id: uuid.UUID, *, roles: bool = True, tier: str = "server") -> Task:
    """The facts about one task instance, whatever its state. Without ``roles`` the DAG's roles are left out.

    Raises `Refusal`: `task_unknown`, or `database_unavailable` for any error of the database.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _read(ti_id, roles, tier)
    except Refusal:
        raise
    except SQLAlchemyError as error:
        record(ERROR, "database_unavailable", problem=type(error).__name__, ti_id=str(ti_id))
        raise Refusal(
            "database_unavailable",
            "Airflow's database did not answer the question for the task; try again, or see the API "
            "server's log",
        ) from None


def _read(ti_id: uuid.UUID, roles: bool, tier: str) -> Task:
    from airflow import settings

    query = _query()
    # A plain connection of Airflow's pool: an ORM session costs as much again as the query.
    with settings.engine.connect() as connection:
        row = connection.execute(query.statement, {"ti_id": query.identifier(ti_id)}).mappings().one_or_none()
        if row is None:
            raise Refusal(
                "task_unknown",
                "Airflow has no such task instance; it was cleared or deleted while it ran, let Airflow "
                "retry it",
            )
        dag = _dag(connection, row)
    return Task(
        dag_id=row["dag_id"],
        task_id=row["task_id"],
        run_id=row["run_id"],
        map_index=row["map_index"],
        try_number=row["try_number"],
        ti_id=str(ti_id),
        state=_text(row["state"]),
        queue=row["queue"],
        pool=row["pool"],
        hostname=row["hostname"] or None,
        owners=owners(row["owners"]),
        tags=dag.tags,
        roles=dag.roles if roles else None,
        team=row["team"] if query.has_teams else query.other_team,
        run_type=_text(row["run_type"]),
        triggering_user_name=_user(row, query),
        tier=tier,
    )


@dataclass(frozen=True, slots=True)
class _Query:
    statement: Any
    id_is_text: bool
    has_teams: bool
    has_user: bool
    other_team: Unknown | None = None
    """The team where the query brings none. Without `multi_team` there are no teams: known to be none."""

    def identifier(self, ti_id: uuid.UUID) -> uuid.UUID | str:
        """The id as this Airflow's column wants it: text in 3.0 and 3.1, a UUID since."""
        return str(ti_id) if self.id_is_text else ti_id


@lru_cache(maxsize=1)
def _query() -> _Query:
    """The one query, built from the columns that this Airflow's tables have."""
    from airflow.configuration import conf
    from airflow.models.dag import DagModel
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import String, and_, bindparam, select

    ti, run, dag = TaskInstance.__table__, DagRun.__table__, DagModel.__table__
    version, serialized = DagVersion.__table__, SerializedDagModel.__table__
    has_user = "triggering_user_name" in run.c  # since 3.1
    latest = (
        select(version.c.id)
        .where(version.c.dag_id == ti.c.dag_id)
        .order_by(version.c.version_number.desc())
        .limit(1)
        .correlate(ti)
        .scalar_subquery()
    )
    columns = [
        ti.c.dag_id,
        ti.c.task_id,
        ti.c.run_id,
        ti.c.map_index,
        ti.c.try_number,
        ti.c.state,
        ti.c.queue,
        ti.c.pool,
        ti.c.hostname,
        dag.c.owners,
        run.c.run_type,
        serialized.c.id.label("serialized_id"),
        serialized.c.dag_hash,
    ]
    if has_user:
        columns.append(run.c.triggering_user_name)
    tables = (
        ti.join(run, and_(run.c.dag_id == ti.c.dag_id, run.c.run_id == ti.c.run_id))
        .outerjoin(dag, dag.c.dag_id == ti.c.dag_id)
        .outerjoin(serialized, serialized.c.dag_version_id == latest)
    )
    multi_team = conf.getboolean("core", "multi_team", fallback=False)  # of use since 3.2
    team = _team_table(ti.metadata) if multi_team else None
    if team is not None:
        # A bundle has one team at most: the table has a unique index for it.
        columns.append(team.c.team_name.label("team"))
        tables = tables.outerjoin(team, team.c.dag_bundle_name == dag.c.bundle_name)
    statement = select(*columns).select_from(tables).where(ti.c.id == bindparam("ti_id"))
    id_is_text = isinstance(ti.c.id.type, String)
    return _Query(statement, id_is_text, team is not None, has_user, UNKNOWN if multi_team else None)


def _team_table(metadata: Any) -> Any:
    """The table of the teams of bundles, in the form that it has since Airflow 3.2; None before."""
    try:
        import airflow.models.team  # noqa: F401 - which adds it
    except ImportError:
        return None
    table = metadata.tables.get("dag_bundle_team")
    return table if table is not None and "team_name" in table.c else None


_lock = threading.Lock()
_dags: OrderedDict[str, tuple[tuple[str, str], _Dag]] = OrderedDict()


def _dag(connection: Any, row: Any) -> _Dag:
    """What the latest serialized version of the row's DAG says; read once for each version."""
    if row["serialized_id"] is None:
        return _Dag(None, None)
    dag_id, key = row["dag_id"], (str(row["serialized_id"]), row["dag_hash"])
    with _lock:
        known = _dags.get(dag_id)
        if known is not None and known[0] == key:
            _dags.move_to_end(dag_id)
            return known[1]
    found = _read_dag(connection, row["serialized_id"], key)
    with _lock:
        _dags[dag_id] = (key, found)
        while len(_dags) > _KNOWN_DAGS:
            _dags.popitem(last=False)
    return found


def _read_dag(connection: Any, serialized_id: Any, key: tuple[str, str]) -> _Dag:
    from airflow.models.serialized_dag import SerializedDagModel
    from sqlalchemy import select

    table = SerializedDagModel.__table__
    statement = select(table.c.data, table.c.data_compressed).where(table.c.id == serialized_id)
    row = connection.execute(statement).one_or_none()
    try:
        if row is None:  # written anew in this moment
            return _Dag(None, None)
        data = json.loads(zlib.decompress(row.data_compressed)) if row.data_compressed else row.data
        dag = (json.loads(data) if isinstance(data, str) else data)["dag"]
        tags = _plain(dag.get("tags"))
        return _Dag(
            tags=tuple(sorted(str(tag) for tag in tags)) if isinstance(tags, list) else (),
            roles=editors(_plain(dag.get("access_control"))),
        )
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
        # Unknown, and so left out of the identity: no rule that asks for tags or roles lets it pass.
        record(ERROR, "dag_unreadable", problem=type(error).__name__, serialized_dag=key[0])
        return _Dag(None, None)


def _plain(value: Any) -> Any:
    """Airflow's serialized form as plain JSON: `{"__type": "set", "__var": […]}` becomes a list."""
    if isinstance(value, dict):
        if "__var" in value:
            return _plain(value["__var"])
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _user(row: Any, query: _Query) -> str | Unknown | None:
    return row["triggering_user_name"] if query.has_user else UNKNOWN


def _text(value: Any) -> str | None:
    """An enum's value, or the text itself."""
    return None if value is None else str(getattr(value, "value", value))
