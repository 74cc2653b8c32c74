"""The README says what is: its tables, examples and links are held against the code."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

from airflow_envoy.command import arguments, doctor
from airflow_envoy.command.policy import named_airflow_roles
from airflow_envoy.marker import Marker
from airflow_envoy.refusal import CODES
from airflow_envoy.settings import OPTIONS, Invalid, Settings

HERE = Path(__file__).parents[1]
TEXT = (HERE / "README.md").read_text(encoding="utf-8")
ROOT = HERE.parent / "README.md"


def table(name: str, text: str = TEXT) -> list[list[str]]:
    """The rows of the table below the comment `tested: name`."""
    _, found, rest = text.partition(f"<!-- tested: {name} -->\n")
    assert found, name
    lines = []
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        lines.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert len(lines) > 2
    return lines[2:]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def test_the_table_of_settings_is_that_of_the_code():
    required = set()
    for option in OPTIONS:
        values = {"issuer": "a", "audiences": "a", "keys": "/a"}
        if option.name in values:
            del values[option.name]
            with pytest.raises(Invalid, match="is required"):
                Settings.parse(values)
            required.add(option.name)
    expected = [
        [
            f"`{option.name}`",
            "required" if option.name in required else f"`{option.default}`" if option.default else "",
            option.meaning,
        ]
        for option in OPTIONS
    ]
    assert [[cell.strip() for cell in row] for row in table("settings")] == expected


def test_every_refusal_is_explained_once():
    codes = [words(row[0])[0] for row in table("refusals")]
    assert sorted(codes) == sorted(CODES)


def test_every_reject_that_is_explained_is_one_of_the_filter():
    if not ROOT.exists():
        pytest.skip("the README of the filter is not here")
    known = {words(row[0])[0] for row in table("codes", ROOT.read_text(encoding="utf-8"))}
    explained = [word for row in table("rejects") for word in words(row[0])]
    assert len(set(explained)) == len(explained)
    assert set(explained) <= known
    assert len(explained) >= 30


def test_every_row_is_whole():
    for name, columns in (("refusals", 3), ("rejects", 3), ("checks", 2), ("settings", 3), ("commands", 2)):
        for row in table(name):
            assert len(row) == columns, row
            assert row[0]
            assert row[-1]


def test_the_table_of_commands_is_that_of_the_code():
    named = [word for row in table("commands") for word in words(row[0])]
    assert sorted(named) == sorted(" ".join(path) for path, _ in arguments.walk())


def test_the_table_of_checks_is_that_of_the_doctor():
    named = [word for row in table("checks") for word in words(row[0])]
    assert sorted(named) == sorted(check.name for check in (*doctor.CHECKS, doctor.CONNECTION, doctor.ENVOY))


def commands() -> list[str]:
    lines = []
    for block in re.findall(r"^```\w*\n(.*?)^```", TEXT, re.M | re.S):
        for line in block.splitlines():
            found = re.search(r"(?:python -m airflow_envoy|airflow envoy) ([^#>|]+)", line)
            if found:
                lines.append(found[1].strip())
    return lines


def test_there_are_commands_to_test():
    assert len(commands()) >= 7


@pytest.mark.parametrize("line", commands())
def test_every_command_can_be_typed(line):
    assert arguments.parser("x").parse_args(shlex.split(line)).command


@pytest.mark.parametrize(
    "line", re.findall(r"`(keys (?!retire`)[^`]+|import-roles [^`]+|check-roles [^`]+|doctor --[^`]+)`", TEXT)
)
def test_every_command_in_the_text_can_be_typed(line):
    line = line.replace("ID", "x")
    assert arguments.parser("x").parse_args(shlex.split(line)).command


def test_the_examples_of_settings_are_valid():
    seen = 0
    base = {"issuer": "a", "audiences": "a", "keys": "/a"}
    for block in blocks("ini"):
        parsed = configparser.ConfigParser(interpolation=None)
        parsed.read_string(block)
        if parsed.has_section("airflow_envoy"):
            Settings.parse({**base, **dict(parsed["airflow_envoy"])})
            seen += 1
        for section in parsed.sections():
            for name, value in parsed[section].items():
                if name.endswith("_kwargs"):
                    assert isinstance(json.loads(value), dict)
    assert seen == 2


def test_the_backends_exist():
    from importlib.util import find_spec

    named = set(re.findall(r"airflow_envoy\.(worker|worker2|triggerer)\.(\w+)", TEXT))
    assert {module for module, _ in named} == {"worker", "worker2", "triggerer"}
    for module, name in named:
        spec = find_spec(f"airflow_envoy.{module}")
        assert spec, module
        assert re.search(rf"^class {name}\b", Path(spec.origin).read_text(encoding="utf-8"), re.M), name


def test_the_json_is_json_and_the_policy_a_policy():
    policies = 0
    for block in blocks("json"):
        document = json.loads(block if block.startswith("{") else "{" + block + "}")
        policies += "rules" in document
        assert list(named_airflow_roles(document)) == []
    assert policies == 1


def test_every_marker_is_valid():
    _, _, rest = TEXT.partition("| value | meaning |\n|---|---|\n")
    values = [words(line)[0] for line in rest.split("\n\n")[0].splitlines()]
    assert len(values) == 5
    for value in values:
        Marker.parse(value)
    for value in re.findall(r'"X-Airflow-Envoy": "([^"]+)"', TEXT):
        Marker.parse(value)


def test_the_yaml_is_yaml():
    yaml = pytest.importorskip("yaml")
    for block in blocks("yaml"):
        assert yaml.safe_load(block)


def test_the_lifetime_that_envoy_allows_is_that_of_its_example():
    example = HERE.parent / "envoy.yaml"
    if not example.exists():
        pytest.skip("the rest of the repository is not here")
    _, _, airflow = example.read_text(encoding="utf-8").partition('"airflow": {')
    allowed = re.search(r'"max_lifetime": "(\w+)"', airflow)
    assert allowed
    assert f"`envoy.yaml` of this project has `{allowed[1]}`" in TEXT


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_link_leads_somewhere():
    for path, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXT):
        file = HERE / path if path else HERE / "README.md"
        if not file.exists() and path.startswith("../"):
            pytest.skip("the rest of the repository is not here")
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), (path, anchor)
