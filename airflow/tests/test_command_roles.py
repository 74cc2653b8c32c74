"""`import-roles` and `check-roles`: against a FAB API of the recorded shape, and Airflow's real tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

import pytest
from served import Answer, closed_port, serve

from airflow_envoy.command import main, policy
from airflow_envoy.command.airflow_roles import ALL_DAGS, Role, from_access_control
from airflow_envoy.command.roles import policy_name, policy_roles

pytest.importorskip("yaml")


def grant(action: str, resource: str) -> dict[str, dict[str, str]]:
    return {"action": {"name": action}, "resource": {"name": resource}}


# As FAB 3.10.2 answers `GET /auth/fab/v1/roles`, shortened.
FAB = [
    {"name": "Admin", "actions": [grant("can_edit", "DAGs"), grant("can_read", "Roles")]},
    {"name": "Public", "actions": []},
    {"name": "Viewer", "actions": [grant("can_read", "DAGs"), grant("can_read", "DAG:churn")]},
    {"name": "DataRole", "actions": [grant("can_edit", "DAG:churn"), grant("can_edit", "DAG:absence")]},
    {"name": "Finance Team", "actions": [grant("can_edit", "DAG:report_daily")]},
]  # fmt: skip


def fab(roles=FAB, *, size=2, token="the-token", total=None):
    def answer(request):
        if request.headers.get("authorization") != f"Bearer {token}":
            return Answer(401, {"detail": "Not authenticated"})
        found = re.fullmatch(r"/auth/fab/v1/roles\?limit=(\d+)&offset=(\d+)", request.path)
        assert found, request.path
        offset = int(found[2])
        # A server may give less than it was asked for.
        return Answer(200, {"roles": roles[offset : offset + size], "total_entries": total or len(roles)})

    return answer


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text("the-token\n")
    return str(file)


def carry_out(capsys, *argv: str):
    code = main(list(argv))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_roles_of_fab_become_roles_of_the_policy(token, capsys):
    with serve(fab()) as server:
        code, out, err = carry_out(capsys, "import-roles", "--api-server", server.url, "--token-file", token)
    assert code == 0
    assert len(server.requests) == 3
    name = policy_name("Finance Team")
    assert out == textwrap.dedent(f"""\
        roles:
          airflow-Admin:
            any:
              - dags:
                  - '*'
          airflow-DataRole:
            any:
              - dags:
                  - absence
                  - churn
          {name}:
            any:
              - dags:
                  - report_daily
        """)
    assert "`Public`: may edit no DAG" in err
    assert "`Viewer`: may edit no DAG" in err


def test_the_output_is_the_same_whatever_the_order(token, capsys):
    outputs = set()
    for roles in (FAB, FAB[::-1]):
        turned = [{**role, "actions": role["actions"][::-1]} for role in roles]
        with serve(fab(turned)) as server:
            outputs.add(
                carry_out(
                    capsys, "import-roles", "--api-server", server.url, "--token-file", token, "--json"
                )[1]
            )
    assert len(outputs) == 1


def test_by_claim_names_the_role_itself(token, capsys):
    with serve(fab()) as server:
        _, out, _ = carry_out(
            capsys, "import-roles", "--api-server", server.url, "--token-file", token,
            "--by", "claim", "--role", "Finance Team", "--json",
        )  # fmt: skip
    assert json.loads(out) == {
        "roles": {policy_name("Finance Team"): {"any": [{"airflow_roles": ["Finance Team"]}]}}
    }


def test_an_answer_of_the_token_endpoint_is_a_token_file_too(tmp_path, capsys):
    file = tmp_path / "answer.json"
    file.write_text('{"access_token": "the-token"}')
    with serve(fab()) as server:
        assert (
            carry_out(capsys, "import-roles", "--api-server", server.url, "--token-file", str(file))[0] == 0
        )


def test_the_token_may_be_in_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW_API_TOKEN", "the-token")
    with serve(fab()) as server:
        assert carry_out(capsys, "import-roles", "--api-server", server.url + "/")[0] == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401, {}), "the token is missing or over"),
        (Answer(403, {}), "may not read roles"),
        (Answer(404, {}), "has no FAB auth manager"),
        (Answer(302, {}, {"location": "http://127.0.0.1:1/"}), "HTTP 302"),
        (Answer(200, b"<html>"), "is no list of roles"),
        (Answer(200, {"roles": [{"name": 1}], "total_entries": 1}), "is no list of roles"),
        (Answer(200, {"roles": [{"name": "a", "actions": [{}]}], "total_entries": 1}), "is no list of roles"),
        (Answer(200, ["roles"]), "is no list of roles"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.status),
)
def test_what_goes_wrong_at_the_api_is_told(answer, words, token, capsys):
    with serve(lambda _: answer) as server:
        code, out, err = carry_out(capsys, "import-roles", "--api-server", server.url, "--token-file", token)
    assert (code, out) == (3, "")
    assert words in err
    assert "the-token" not in err


def test_an_api_server_that_never_ends_its_list_is_left(token, capsys):
    with serve(fab(total=10**9)) as server:
        code, out, _ = carry_out(
            capsys, "import-roles", "--api-server", server.url, "--token-file", token, "--json"
        )
    assert (code, len(json.loads(out)["roles"])) == (0, 3)


def test_no_api_server_is_told(token, capsys):
    url = f"http://127.0.0.1:{closed_port()}"
    code, _, err = carry_out(capsys, "import-roles", "--api-server", url, "--token-file", token)
    assert code == 3
    assert "is the API server running" in err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "give one of --database and --api-server"),
        (["--database", "--api-server", "http://127.0.0.1:1"], 2, "give one of"),
        (["--api-server", "airflow.example"], 2, "is no http or https URL"),
        (["--api-server", "http://127.0.0.1:1", "--token-file", "/nonexistent"], 3, "No such file"),
        (["--api-server", "http://127.0.0.1:1", "--token-file", "{empty}"], 3, "is no bearer token"),
        (["--api-server", "http://127.0.0.1:1", "--token-file", "{other}"], 3, "is neither a token nor"),
        (["--api-server", "https://127.0.0.1:1", "--ca-file", "{empty}"], 3, "is no CA bundle"),
        (["--api-server", "https://127.0.0.1:1", "--ca-file", "/nonexistent"], 3, "No such file"),
    ],
)
def test_wrong_arguments_are_told(argv, code, words, tmp_path, capsys):
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_text('{"token": 1}')
    argv = [word.format(empty=tmp_path / "empty", other=tmp_path / "other") for word in argv]
    got, _, err = carry_out(capsys, "import-roles", *argv)
    assert (got, words in err) == (code, True), err


def test_a_role_that_airflow_lacks_is_not_imported(token, capsys):
    with serve(fab()) as server:
        code, _, err = carry_out(
            capsys, "import-roles", "--api-server", server.url, "--token-file", token, "--role", "Datarole"
        )
    assert code == 3
    assert "did you mean `DataRole`?" in err


def test_a_token_does_not_travel_in_the_open_unnoticed(token, capsys):
    code, _, err = carry_out(
        capsys, "import-roles", "--api-server", "http://invalid.invalid", "--token-file", token
    )
    assert code == 3
    assert "unencrypted" in err


@pytest.mark.parametrize(
    "role",
    ["DataRole", "a.b_c-d", "Data Team", "Data_Team", "Équipe", "a/b", "a\nb", "x" * 64, "x" * 300, "*", ""],
)
def test_policy_names_are_names_of_a_policy(role):
    # The filter's own rule (policy/read.rs, check_id).
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", policy_name(role))


def test_policy_names_keep_roles_apart():
    roles = ["Data Team", "Data_Team", "Data/Team", "Data-Team", "Équipe", "Èquipe", "x" * 200, "x" * 201]
    assert len({policy_name(role) for role in roles}) == len(roles)
    assert policy_name("Data_Team") == "airflow-Data_Team"


def test_a_role_with_a_star_is_never_written_as_a_pattern():
    roles = {name: Role(name, {"churn"}) for name in ("Data*", "DataRole", "")}
    made, left_out = policy_roles(roles, "claim")
    assert list(made) == ["airflow-DataRole"]
    assert len(left_out) == 2


def marked(kind: str, value: object) -> dict[str, object]:
    return {"__type": kind, "__var": value}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"A": {"DAGs": ["can_edit"]}}, {"A": {"d"}}),
        ({"A": ["can_edit", "can_read"]}, {"A": {"d"}}),
        (
            {"A": {"DAGs": ["can_read"]}, "B": {"DAG Runs": ["can_edit"]}, "C": {}},
            {"A": set(), "B": set(), "C": set()},
        ),
        # As Airflow serializes it.
        (
            marked("dict", {"A": marked("dict", {"DAGs": marked("set", ["can_edit"])})}),
            {"A": {"d"}},
        ),
    ],
)  # fmt: skip
def test_access_control_is_read_in_each_of_its_forms(written, expected):
    roles: dict[str, Role] = {}
    from_access_control("d", written, roles)
    assert {name: role.dags for name, role in roles.items()} == expected
    assert {name: role.claimed for name, role in roles.items()} == {
        name: bool(dags) for name, dags in expected.items()
    }


POLICY = {
    "version": 1,
    "roles": {
        "data": {"any": [{"teams": ["data"]}, {"airflow_roles": ["DataRole", "Finance*"]}]},
        "airflow-Gone": {"any": [{"dags": ["x"]}]},
    },
    "destinations": {"orders": {"hosts": ["orders.internal"]}},
    "rules": [{"id": "r", "effect": "allow", "from": {"roles": ["data"]}, "to": ["orders"]}],
}


def check(capsys, tmp_path, token, document, *options, roles=FAB, suffix="json"):
    file = tmp_path / f"policy.{suffix}"
    file.write_text(json.dumps(document) if suffix == "json" else policy.to_yaml(document))
    with serve(fab(roles)) as server:
        return carry_out(
            capsys, "check-roles", str(file), "--api-server", server.url, "--token-file", token, *options
        )


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_policy_whose_roles_exist_is_fine(suffix, capsys, tmp_path, token):
    code, out, _ = check(capsys, tmp_path, token, POLICY, suffix=suffix)
    assert code == 0
    assert "OK " in out
    assert "no policy mentions: Admin, Public, Viewer" in out


def test_roles_that_do_not_exist_are_found_with_their_place(capsys, tmp_path, token):
    document = json.loads(json.dumps(POLICY))
    document["roles"]["data"]["any"][1]["airflow_roles"] += ["datarole", "Zebra?"]
    document["rules"][0]["from"]["airflow_roles"] = ["Finance team"]
    code, out, _ = check(capsys, tmp_path, token, document)
    assert code == 1
    assert (
        "roles.data.any[1].airflow_roles[2]: Airflow has no role `datarole`, did you mean `DataRole`?" in out
    )
    assert "roles.data.any[1].airflow_roles[3]: Airflow has no role `Zebra?`\n" in out
    assert (
        "rules[r].from.airflow_roles[0]: Airflow has no role `Finance team`, did you mean `Finance Team`?"
        in out
    )
    code, out, _ = check(capsys, tmp_path, token, document, "--json")
    found = json.loads(out)
    assert (code, [entry["role"] for entry in found["missing"]]) == (
        1,
        ["datarole", "Zebra?", "Finance team"],
    )


def test_a_role_that_no_identity_can_have_is_noted(capsys, tmp_path, token):
    document = json.loads(json.dumps(POLICY))
    document["roles"]["data"]["any"][1]["airflow_roles"] = ["Admin"]
    code, out, _ = check(capsys, tmp_path, token, document)
    assert code == 0
    assert "no DAG's access_control lets `Admin` edit it" in out


def test_an_imported_role_mentions_its_airflow_role(capsys, tmp_path, token):
    document = {**POLICY, "roles": {**POLICY["roles"], "airflow-Viewer": {"any": [{"dags": ["*"]}]}}}
    _, out, _ = check(capsys, tmp_path, token, document, "--json")
    assert json.loads(out)["not_in_policy"] == ["Admin", "Public"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a policy is an object"),
        ('{"roles": []}', "`roles` is a list"),
        ('{"rules": {}}', "`rules` is an object"),
        ('{"rules": [}', "Expecting value"),
        ("rules: [\n", "policy:2:1"),
        ("a: b: c", "policy:1:5"),
        ("eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "this is a signed policy"),
        ("", "a policy is an object"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_what_is_no_policy_is_told(text, words, tmp_path, capsys):
    file = tmp_path / "policy"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, err = carry_out(capsys, "check-roles", str(file), "--database")
    assert (code, words in err) == (3, True), err


@pytest.mark.parametrize(
    "odd",
    [
        {"roles": None, "rules": None},
        {"roles": {"a": None, "b": {"any": None}, "c": {"any": [None, {"airflow_roles": "x"}]}}},
        {"rules": [None, 1, {"from": None}, {"from": {"airflow_roles": [1, None]}}]},
    ],
)
def test_odd_policies_name_no_role_and_break_nothing(odd):
    assert list(policy.named_airflow_roles(odd)) == []
    assert list(policy.roles_asked_for(odd)) == []


def merge(capsys, tmp_path, token, document, *options):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(document))
    with serve(fab()) as server:
        return carry_out(
            capsys, "import-roles", "--api-server", server.url, "--token-file", token,
            "--merge", str(file), "--json", *options,
        )  # fmt: skip


def test_merging_replaces_imported_roles_and_nothing_else(capsys, tmp_path, token):
    code, out, _ = merge(capsys, tmp_path, token, POLICY)
    merged = json.loads(out)
    assert code == 0
    assert list(merged) == list(POLICY)
    assert {name: value for name, value in merged.items() if name != "roles"} == {
        name: value for name, value in POLICY.items() if name != "roles"
    }
    assert list(merged["roles"]) == ["data", "airflow-Admin", "airflow-DataRole", policy_name("Finance Team")]
    assert json.loads(merge(capsys, tmp_path, token, merged)[1]) == merged


def test_merging_one_role_keeps_the_others(capsys, tmp_path, token):
    _, out, _ = merge(capsys, tmp_path, token, POLICY, "--role", "DataRole")
    assert list(json.loads(out)["roles"]) == ["data", "airflow-Gone", "airflow-DataRole"]


def test_a_merge_that_the_filter_would_refuse_is_not_printed(capsys, tmp_path, token):
    document = json.loads(json.dumps(POLICY))
    document["rules"][0]["from"]["roles"] = ["airflow-Gone"]
    code, out, err = merge(capsys, tmp_path, token, document)
    assert code == 1
    assert "roles" not in json.loads(out)
    assert "rule `r` asks for `airflow-Gone`" in err


DATABASE = """
    import json, sys
    from airflow import settings
    from airflow.models import DagModel
    from airflow.models.base import Base
    from airflow.models.serialized_dag import SerializedDagModel
    import airflow.models
    try:
        from airflow.models.dag_version import DagVersion
    except ImportError:
        DagVersion = None
    from sqlalchemy import text
    airflow.models.import_all_models()
    try:
        import airflow.providers.fab.auth_manager.models  # Airflow 2 has them always
    except ImportError:
        pass
    settings.configure_orm()
    engine = settings.engine
    Base.metadata.create_all(engine)
    stale = "is_stale" if hasattr(DagModel, "is_stale") else "is_active"
    def mark(value): return {"__type": "dict", "__var": {k: {"__type": "dict", "__var": {"DAGs": {"__type": "set", "__var": v}}} for k, v in value.items()}}
    from datetime import datetime, timezone
    import uuid
    now = datetime.now(timezone.utc)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text("pragma foreign_keys = off"))
        for dag_id, old, roles in [("churn", False, {"DataRole": ["can_read", "can_edit"], "Viewer": ["can_read"]}), ("gone", True, {"Ghost": ["can_edit"]}),
                                   ("plain", False, None), ("never_parsed", False, "absent")]:
            row = {"dag_id": dag_id, stale: old if stale == "is_stale" else not old}
            for column in DagModel.__table__.columns:
                if column.name not in row and not column.nullable:
                    row[column.name] = {"INTEGER": 1, "BOOLEAN": False, "FLOAT": 0.0}.get(str(column.type).split("(")[0], "x")
            c.execute(DagModel.__table__.insert(), [row])
            if roles == "absent": continue
            table = SerializedDagModel.__table__
            data = {"dag": {"dag_id": dag_id, **({"access_control": mark(roles)} if roles is not None else {})}}
            version = uuid.uuid4()
            if DagVersion is not None:
                c.execute(DagVersion.__table__.insert(), [{"id": version, "dag_id": dag_id, "version_number": 1, "created_at": now, "last_updated": now}])
            row = {"dag_id": dag_id, "data": data, "dag_hash": "x", "created_at": now, "last_updated": now, "id": uuid.uuid4(),
                   "dag_version_id": version, "fileloc": "x", "fileloc_hash": 1, "processor_subdir": None}
            c.execute(table.insert(), [{k: v for k, v in row.items() if k in table.columns}])
        if sys.argv[1] == "fab":
            for statement in [
                "create table if not exists ab_role (id integer, name text)", "create table if not exists ab_permission (id integer, name text)",
                "create table if not exists ab_view_menu (id integer, name text)",
                "create table if not exists ab_permission_view (id integer, permission_id integer, view_menu_id integer)",
                "create table if not exists ab_permission_view_role (id integer, permission_view_id integer, role_id integer)",
                "insert into ab_role values (1, 'Admin'), (2, 'Public'), (3, 'DataRole')",
                "insert into ab_permission values (1, 'can_edit'), (2, 'can_read')",
                "insert into ab_view_menu values (1, 'DAGs'), (2, 'DAG:by_hand')",
                "insert into ab_permission_view values (1, 1, 1), (2, 1, 2), (3, 2, 1)",
                "insert into ab_permission_view_role values (1, 1, 1), (2, 3, 1), (3, 2, 3), (4, 3, 2)",
            ]: c.execute(text(statement))
    from airflow_envoy.command import airflow_roles
    roles = airflow_roles.from_database()
    print("ROLES " + json.dumps({n: [sorted(r.dags), r.claimed] for n, r in sorted(roles.items())}))
"""  # noqa: E501


def database(tmp_path, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DATABASE), kind],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(p for p in sys.path if p),
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
            **variables,
        },
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", {"DataRole": [["churn"], True], "Viewer": [[], False]}),
        (
            "fab",
            {
                "Admin": [[ALL_DAGS], False],
                "DataRole": [["by_hand", "churn"], True],
                "Public": [[], False],
                "Viewer": [[], False],
            },
        ),
    ],
)
def test_the_database_tells_roles_of_live_dags_and_of_fab(tmp_path, kind, expected):
    pytest.importorskip("airflow.models")
    done = database(tmp_path, kind)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ROLES ")] or [""]
    assert line, done.stderr[-3000:]
    assert json.loads(line[6:]) == expected


def test_a_database_that_is_not_airflows_is_told(tmp_path):
    pytest.importorskip("airflow.models")
    script = """
        import sys
        from airflow_envoy.command import main
        sys.exit(main(["import-roles", "--database"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(p for p in sys.path if p),
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'empty.db'}",
        },
    )
    assert done.returncode == 3
    assert "no such table" in done.stderr
    assert "Traceback" not in done.stderr
