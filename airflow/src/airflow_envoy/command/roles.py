"""`import-roles` and `check-roles`: Airflow's roles beside those of the policy."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import hashlib
import re
from typing import Any

from airflow_envoy.command import airflow_roles, policy
from airflow_envoy.command.airflow_roles import ALL_DAGS, Role
from airflow_envoy.command.report import DONE, FOUND, Problem, note, print_json, say

__all__ = ["PREFIX", "check_roles", "import_roles", "policy_name", "policy_roles"]

PREFIX = "airflow-"


def policy_name(role: str) -> str:
    """The policy's name for an Airflow role: `airflow-<role>`.

    A policy's names have letters of ASCII, digits, `.`, `_` and `-`. Any other character becomes `_`, and
    then a few
    digits of the name's SHA-256 keep two roles apart, whichever others exist.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", role)[: 128 - len(PREFIX)]
    if plain == role:
        return PREFIX + role
    digits = hashlib.sha256(role.encode()).hexdigest()[:8]
    return f"{PREFIX}{plain[: 128 - len(PREFIX) - 9]}-{digits}"


def policy_roles(roles: dict[str, Role], by: str) -> tuple[dict[str, Any], list[str]]:
    """The policy's `roles`, sorted by name, and those Airflow roles that cannot be written, with the
    reason.
    """
    made: dict[str, Any] = {}
    left_out: list[str] = []
    for name in sorted(roles):
        role = roles[name]
        if by == "claim":
            if "*" in name or not name:
                left_out.append(f"`{name}`: `*` in the policy's `airflow_roles` would match other roles too")
                continue
            selector: dict[str, Any] = {"airflow_roles": [name]}
        else:
            dags = [ALL_DAGS] if ALL_DAGS in role.dags else sorted(dag for dag in role.dags if "*" not in dag)
            if not dags:
                left_out.append(f"`{name}`: may edit no DAG")
                continue
            selector = {"dags": dags}
        made[policy_name(name)] = {"any": [selector]}
    return dict(sorted(made.items())), left_out


def import_roles(args: argparse.Namespace) -> int:
    """The command `import-roles`."""
    base = policy.read(args.merge) if args.merge else None
    roles = airflow_roles.load(args)
    if args.role:
        for name in args.role:
            if name not in roles:
                raise Problem(f"Airflow has no role `{name}`" + _did_you_mean(name, roles))
        roles = {name: roles[name] for name in args.role}
    made, left_out = policy_roles(roles, args.by)
    for reason in left_out:
        note(f"left out {reason}")
    document: dict[str, Any] = {"roles": made}
    if base is not None:
        document = _merged(base, made, bool(args.role))
    if args.json or not policy.has_yaml():
        print_json(document)
    else:
        say(policy.to_yaml(document).rstrip("\n"))
    return DONE


def _merged(base: dict[str, Any], made: dict[str, Any], keep: bool) -> dict[str, Any]:
    """`base` with its `airflow-…` roles replaced; with `keep` only those of the same name."""
    others = {
        name: role
        for name, role in (base.get("roles") or {}).items()
        if name not in made and (keep or not str(name).startswith(PREFIX))
    }
    merged = {**base, "roles": {**others, **made}}
    gone = sorted(
        {(rule, role) for rule, role in policy.roles_asked_for(merged) if role not in merged["roles"]}
    )
    if gone:
        shown = ", ".join(f"rule `{rule}` asks for `{role}`" for rule, role in gone)
        raise Problem(
            f"the merged policy would be refused: {shown}",
            "no such role comes from Airflow any more: change the rule first",
            code=FOUND,
        )
    # `roles` stays where it was; in a policy that has none it comes before the rules.
    order = list(base) if "roles" in base else ["version", "revision", "roles", *base]
    return {name: merged[name] for name in dict.fromkeys(order) if name in merged}


def check_roles(args: argparse.Namespace) -> int:
    """The command `check-roles`."""
    policies = [(name, policy.read(name)) for name in args.policy]
    roles = airflow_roles.load(args)
    missing: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    mentioned: set[str] = set()
    for file, document in policies:
        written = {str(name) for name in document.get("roles") or {}}
        mentioned |= {name for name in roles if policy_name(name) in written}
        for place, value in policy.named_airflow_roles(document):
            matched = {name for name in roles if _matches(value, name)}
            mentioned |= matched
            entry = {"policy": file, "place": place, "role": value}
            if not matched:
                missing.append({**entry, "did_you_mean": _close(value, roles)})
            elif not any(roles[name].claimed for name in matched):
                silent.append(entry)
    unmentioned = sorted(set(roles) - mentioned)
    if args.json:
        print_json({"missing": missing, "in_no_identity": silent, "not_in_policy": unmentioned})
    else:
        for entry in missing:
            hint = f", did you mean `{entry['did_you_mean']}`?" if entry["did_you_mean"] else ""
            say(f"MISSING  {entry['policy']}: {entry['place']}: Airflow has no role `{entry['role']}`{hint}")
        for entry in silent:
            say(
                f"NOTE     {entry['policy']}: {entry['place']}: no DAG's access_control lets "
                f"`{entry['role']}` edit it, "
                "so no identity has it"
            )
        if unmentioned:
            say(f"NOTE     roles of Airflow that no policy mentions: {', '.join(unmentioned)}")
        if not missing:
            say(f"OK       every role that the policy names exists in Airflow ({len(roles)} roles)")
    return FOUND if missing else DONE


def _matches(pattern: str, name: str) -> bool:
    """As the policy does: `*` stands for any run of characters, nothing else is special, case counts."""
    return fnmatch.fnmatchcase(name, re.sub(r"([\[?])", r"[\1]", pattern))


def _close(name: str, roles: dict[str, Role]) -> str | None:
    by_small = {role.lower(): role for role in sorted(roles)}
    found = difflib.get_close_matches(name.lower(), by_small, n=1, cutoff=0.6)
    return by_small[found[0]] if found else None


def _did_you_mean(name: str, roles: dict[str, Role]) -> str:
    close = _close(name, roles)
    return f", did you mean `{close}`?" if close else ""
