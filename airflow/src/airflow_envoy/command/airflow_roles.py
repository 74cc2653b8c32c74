"""Airflow's roles and the DAGs that each may edit: from the REST API of the FAB auth manager, or from the
database.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_envoy.command.report import Problem, note

__all__ = ["ALL_DAGS", "Role", "from_access_control", "from_fab", "from_permissions", "load"]

# FAB's words (airflow/providers/fab/www/security/permissions.py).
CAN_EDIT, DAGS, DAG_PREFIX = "can_edit", "DAGs", "DAG:"
ALL_DAGS = "*"
PAGE = 100
MOST_PAGES = 1000


@dataclass
class Role:
    """One role of Airflow."""

    name: str
    dags: set[str] = field(default_factory=set)
    """Ids of the DAGs that it may edit, [`ALL_DAGS`] for every one."""
    claimed: bool = False
    """Whether a DAG's `access_control` lets it edit that DAG: only then can it stand in an identity."""


def load(args: argparse.Namespace) -> dict[str, Role]:
    """The roles from the source that the arguments name. Raises [`Problem`]."""
    if bool(args.database) == bool(args.api_server):
        raise Problem("where are Airflow's roles?", "give one of --database and --api-server URL", code=2)
    if args.database:
        return from_database()
    return from_fab(args.api_server, _token(args.token_file), args.ca_file)


def from_permissions(pairs: Iterable[tuple[str, str, str]], roles: dict[str, Role]) -> None:
    """Adds FAB's permissions: role, action (`can_edit`), resource (`DAG:orders`; `DAGs` for every DAG)."""
    for name, action, resource in pairs:
        role = roles.setdefault(name, Role(name))
        if action != CAN_EDIT:
            continue
        if resource == DAGS:
            role.dags.add(ALL_DAGS)
        elif resource.startswith(DAG_PREFIX):
            role.dags.add(resource[len(DAG_PREFIX) :])


def from_access_control(dag_id: str, access_control: Any, roles: dict[str, Role]) -> None:
    """Adds what one DAG's `access_control` says, serialized or not: `{role: {"DAGs": actions}}`, or the
    older `{role: actions}`.
    """
    for name, resources in (_plain(access_control) or {}).items():
        role = roles.setdefault(name, Role(name))
        actions = resources.get(DAGS, ()) if isinstance(resources, dict) else resources
        if CAN_EDIT in (actions or ()):
            role.dags.add(dag_id)
            role.claimed = True


def _plain(value: Any) -> Any:
    """A value of a serialized DAG without Airflow's type marks (`{"__type": "set", "__var": [...]}`)."""
    if isinstance(value, dict):
        if "__var" in value and "__type" in value:
            return _plain(value["__var"])
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, set, tuple, frozenset)) else value


def from_fab(
    base: str, token: str | None, ca_file: str | None = None, timeout: float = 10.0
) -> dict[str, Role]:
    """The roles by `GET /auth/fab/v1/roles`, page after page. `timeout` in seconds for each request. Raises
    [`Problem`].
    """
    import httpx

    address = urlsplit(base)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise Problem(f"--api-server: `{base}` is no http or https URL", code=2)
    if token and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        note(f"the token goes to {address.hostname} unencrypted; use https")
    url = base.rstrip("/") + "/auth/fab/v1/roles"
    headers = {"accept": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    roles: dict[str, Role] = {}
    seen = 0
    try:
        with httpx.Client(timeout=timeout, headers=headers, verify=_trust(ca_file)) as client:
            for _ in range(MOST_PAGES):
                answer = client.get(url, params={"limit": PAGE, "offset": seen})
                page, total = _page(url, answer)
                for role in page:
                    roles.setdefault(role["name"], Role(role["name"]))
                    from_permissions(_pairs(role), roles)
                seen += len(page)
                if not page or seen >= total:
                    break
            else:
                raise Problem(f"{url}: more than {PAGE * MOST_PAGES} roles")
    except httpx.HTTPError as error:
        raise Problem(
            f"{url}: {error or type(error).__name__}", "is the API server running, and the URL right?"
        ) from None
    # FAB copies every `access_control` to permissions on `DAG:<id>`, and does not tell those that were given
    # by hand.
    for found in roles.values():
        found.claimed = bool(found.dags - {ALL_DAGS})
    return roles


def _trust(ca_file: str | None) -> Any:
    import ssl

    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise Problem(f"{ca_file}: is no CA bundle (PEM)") from None
    except OSError as error:
        raise Problem(f"{ca_file}: {error.strerror}") from None


def _page(url: str, answer: Any) -> tuple[list[dict[str, Any]], int]:
    advice = {
        401: "the token is missing or over: get a new one from POST /auth/token",
        403: "the token's user may not read roles: it needs `can_read` on `Roles`",
        404: "this API server has no FAB auth manager; use --database on a host of Airflow",
    }
    if answer.status_code != 200:
        raise Problem(f"{url}: HTTP {answer.status_code}", advice.get(answer.status_code, ""))
    try:
        document = answer.json()
        page, total = document["roles"], int(document["total_entries"])
        for role in page:
            _ = role["name"] + "", list(_pairs(role))
    except (ValueError, KeyError, TypeError):
        raise Problem(f"{url}: the answer is no list of roles") from None
    return page, total


def _pairs(role: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    for permission in role.get("actions") or ():
        yield role["name"], permission["action"]["name"], permission["resource"]["name"]


def _token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("AIRFLOW_API_TOKEN", "").strip() or None
    try:
        text = (sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{file}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    # `POST /auth/token` answers {"access_token": …}: that answer may be kept as it is.
    if text.startswith("{"):
        try:
            text = json.loads(text)["access_token"]
        except (ValueError, KeyError, TypeError):
            raise Problem(f"{file}: is neither a token nor an answer of POST /auth/token") from None
    if not isinstance(text, str) or not text or not text.isascii() or any(c.isspace() for c in text):
        raise Problem(f"{file}: is no bearer token")
    return text


def from_database() -> dict[str, Role]:
    """The roles from Airflow's metadata database: FAB's tables if there are any, and every live DAG's
    `access_control`.

    Raises [`Problem`].
    """
    try:
        from airflow import settings
        from airflow.configuration import conf
        from airflow.models import DagModel
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.utils.session import create_session
        from sqlalchemy import column, inspect, select, table
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise Problem(f"--database needs Airflow here: {error}", "or use --api-server URL") from None

    roles: dict[str, Role] = {}
    schema = conf.get("database", "sql_alchemy_schema", fallback=None) or None
    role = table("ab_role", column("id"), column("name"), schema=schema)
    held = table("ab_permission_view_role", column("permission_view_id"), column("role_id"), schema=schema)
    pair = table(
        "ab_permission_view", column("id"), column("permission_id"), column("view_menu_id"), schema=schema
    )
    action = table("ab_permission", column("id"), column("name"), schema=schema)
    resource = table("ab_view_menu", column("id"), column("name"), schema=schema)
    alive = ~DagModel.is_stale if hasattr(DagModel, "is_stale") else DagModel.is_active
    try:
        if getattr(settings, "engine", None) is None:
            settings.configure_orm()
        with create_session() as session:
            if inspect(session.connection()).has_table("ab_role", schema=schema):
                roles.update((name, Role(name)) for (name,) in session.execute(select(role.c.name)))
                query = (
                    select(role.c.name, action.c.name, resource.c.name)
                    .select_from(held)
                    .join(role, role.c.id == held.c.role_id)
                    .join(pair, pair.c.id == held.c.permission_view_id)
                    .join(action, action.c.id == pair.c.permission_id)
                    .join(resource, resource.c.id == pair.c.view_menu_id)
                    .where(action.c.name == CAN_EDIT)
                )
                from_permissions((tuple(row) for row in session.execute(query)), roles)
            for dag_id in session.scalars(select(DagModel.dag_id).where(alive)).all():
                row = SerializedDagModel.get(dag_id, session=session)
                data = row.data if row is not None else None
                dag = data.get("dag", {}) if isinstance(data, dict) else {}
                # Airflow 2 has the underscore.
                from_access_control(dag_id, dag.get("access_control", dag.get("_access_control")), roles)
                if row is not None:
                    session.expunge(row)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise Problem(
            f"Airflow's database: {reason}", "is this a host of Airflow, and `airflow db check` fine?"
        ) from None
    return roles
