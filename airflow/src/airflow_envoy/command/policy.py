"""Reading a policy far enough to find and replace its roles. What a policy may be is judged by the filter
alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_envoy.command.report import Problem

__all__ = ["has_yaml", "named_airflow_roles", "read", "roles_asked_for", "to_yaml"]


def has_yaml() -> bool:
    """Whether PyYAML is installed; it always is beside Airflow."""
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        return False
    return True


def read(name: str) -> dict[str, Any]:
    """The policy of a JSON or YAML file, `-` for standard input.

    Raises [`Problem`] if it cannot be read or has not the shape of a policy.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{name}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from None
    document = _parse(name, text)
    if not isinstance(document, dict):
        raise Problem(f"{name}: a policy is an object with `version` and `rules`, this is {_kind(document)}")
    for member, kind in (("roles", dict), ("rules", list)):
        if not isinstance(document.get(member, kind()), kind):
            raise Problem(f"{name}: `{member}` is {_kind(document[member])}")
    return document


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        fault = str(error)
    parts = text.strip().split(".")
    if len(parts) == 3 and text.startswith("eyJ"):
        raise Problem(f"{name}: this is a signed policy", "check the document before it is signed")
    if text.lstrip().startswith("{") or not has_yaml():
        raise Problem(f"{name}: {fault}", "" if has_yaml() else "YAML needs the package PyYAML")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise Problem(f"{where}: {getattr(error, 'problem', None) or 'this is no YAML'}") from None


def named_airflow_roles(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each value of an `airflow_roles`, with its place in the document: `("roles.a.any[0].airflow_roles[1]",
    "Op")`.
    """
    for name, role in (policy.get("roles") or {}).items():
        selectors = role.get("any") if isinstance(role, dict) else None
        for number, selector in enumerate(selectors if isinstance(selectors, list) else ()):
            yield from _values(selector, f"roles.{name}.any[{number}]")
    for number, rule in enumerate(policy.get("rules") or []):
        if isinstance(rule, dict):
            shown = rule.get("id") if isinstance(rule.get("id"), str) else number
            yield from _values(rule.get("from"), f"rules[{shown}].from")


def _values(selector: Any, place: str) -> Iterator[tuple[str, str]]:
    values = selector.get("airflow_roles") if isinstance(selector, dict) else None
    for number, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield f"{place}.airflow_roles[{number}]", value


def roles_asked_for(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each role of the policy that a rule asks for, with the rule's id."""
    for number, rule in enumerate(policy.get("rules") or []):
        who = rule.get("from") if isinstance(rule, dict) else None
        names = who.get("roles") if isinstance(who, dict) else None
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str):
                yield str(rule.get("id", number)), name


def to_yaml(document: dict[str, Any]) -> str:
    """Block style, one value a line, members in the order given: what changes little has a small diff."""
    import yaml

    class Indented(yaml.SafeDumper):  # type: ignore[misc, unused-ignore]
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
            return super().increase_indent(flow, False)

    text: str = yaml.dump(
        document, Dumper=Indented, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1000
    )
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
