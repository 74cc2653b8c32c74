"""`keys …`."""

from __future__ import annotations

import json
import os
import time

import pytest

from airflow_envoy import keys as ring
from airflow_envoy.command import keys as commands
from airflow_envoy.command import main


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ring"
    assert main(["keys", "new", "--folder", str(path)]) == 0
    return path


def answer(capsys, *argv: str, code: int = 0):
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def listed(capsys, folder):
    return answer(capsys, "keys", "list", "--folder", str(folder))


def test_a_new_ring_has_one_key_which_signs(folder, capsys):
    shown = listed(capsys, folder)
    assert [(key["state"], key["alg"]) for key in shown["keys"]] == [("signing", "ES256")]
    assert shown["warnings"] == []


def test_a_ring_is_never_made_twice(folder, capsys):
    before = (folder / "keys.json").read_bytes()
    assert (
        "use `keys rotate`"
        in answer(capsys, "keys", "new", "--folder", str(folder), code=3)["error"]["message"]
    )
    assert (folder / "keys.json").read_bytes() == before


def test_the_next_key_is_published_before_it_signs(folder, capsys):
    made = answer(capsys, "keys", "rotate", "--folder", str(folder))["key"]
    assert abs(made["signs_from"] - time.time() - commands.DEFAULT_LEAD) < 60
    shown = listed(capsys, folder)
    assert [key["state"] for key in shown["keys"]] == ["signing", "next"]
    assert "about to sign" in shown["warnings"][0]
    published = answer(capsys, "keys", "jwks", "--folder", str(folder))
    assert {key["kid"] for key in published["keys"]} == {key["kid"] for key in shown["keys"]}
    assert all("d" not in key for key in published["keys"])


@pytest.mark.parametrize(("waits", "warned"), [(True, False), (False, True)])
def test_signing_at_once_warns_if_the_key_is_new(folder, capsys, waits, warned):
    if waits:
        main(["keys", "rotate", "--folder", str(folder)])
    capsys.readouterr()
    assert main(["keys", "rotate", "--now", "--folder", str(folder)]) == 0
    assert ("identity_key_unknown" in capsys.readouterr().err) is warned
    assert [key["state"] for key in listed(capsys, folder)["keys"]] == ["published", "signing"]


def test_now_and_lead_exclude_each_other(folder, capsys):
    assert main(["keys", "rotate", "--now", "--lead", "5m", "--folder", str(folder)]) == 2
    assert "exclude" in capsys.readouterr().err


def test_the_algorithm_of_the_next_key_can_change(folder, capsys):
    assert (
        answer(capsys, "keys", "rotate", "--alg", "EdDSA", "--folder", str(folder))["key"]["alg"] == "EdDSA"
    )


def test_a_key_that_leaked_is_gone_at_once(folder, capsys):
    (leaked,) = listed(capsys, folder)["keys"]
    done = answer(capsys, "keys", "retire", leaked["kid"], "--folder", str(folder))
    assert done["successor"]["kid"] != leaked["kid"]
    assert not (folder / f"{leaked['kid']}.pem").exists()
    assert [key["kid"] for key in listed(capsys, folder)["keys"]] == [done["successor"]["kid"]]


def test_an_id_that_begins_with_a_hyphen_can_be_retired(folder, capsys):
    # argparse takes it for an option, unless two hyphens come before it.
    assert main(["keys", "retire", "--folder", str(folder), "--", "-x"]) == 3
    assert "there is no key '-x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: next(f.glob("*.pem")).chmod(0o644), "can be read by others"),
        (lambda f: f.chmod(0o777), "can be written by others"),
        (lambda f: next(f.glob("*.pem")).unlink(), "has no file"),
    ],
)
def test_what_is_wrong_with_a_ring_is_told(folder, capsys, spoil, words):
    spoil(folder)
    assert words in " ".join(listed(capsys, folder)["warnings"])


DAY = 86400
NOW = 2_000_000_000


def entry(kid: str, signs_from: int, until: int | None = None) -> ring.Entry:
    return ring.Entry(kid * 43, "ES256", signs_from, signs_from, until)


@pytest.mark.parametrize(
    ("entries", "states", "words"),
    [
        ([entry("a", NOW - DAY)], ["signing"], None),
        ([entry("a", NOW - 400 * DAY)], ["signing"], "400 days old and no next key"),
        ([entry("a", NOW - 400 * DAY), entry("b", NOW + 60)], ["signing", "next"], "about to sign"),
        ([entry("a", NOW - DAY, NOW + 90)], ["signing"], "no next key follows"),
        ([entry("a", NOW - DAY, NOW - 1)], ["over"], "no key may sign now"),
        ([entry("a", NOW + 3600)], ["next"], "no key may sign now"),
        ([entry("a", NOW - DAY, NOW + 90), entry("b", NOW - 9)], ["published", "signing"], None),
    ],
)
def test_states_and_warnings_follow_time(tmp_path, entries, states, words):
    for one in entries:
        (tmp_path / f"{one.kid}.pem").touch(mode=0o600)
    tmp_path.chmod(0o700)
    entries = tuple(entries)
    assert [commands.state(one, entries, NOW) for one in entries] == states
    assert commands.exposure(tmp_path) == []
    told = commands.course(tmp_path, entries, NOW)
    assert (words in " ".join(map(str, told))) if words else not told


def test_without_a_ring_every_command_says_how_to_make_one(tmp_path, capsys):
    for argv in (["list"], ["jwks"], ["rotate"], ["retire", "x"]):
        assert main(["keys", *argv, "--folder", str(tmp_path / "none")]) == 3
        assert "keys new" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path):
    folder = tmp_path / "ring"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 23456)
    assert main(["keys", "new", "--folder", str(folder)]) == 0
    assert main(["keys", "rotate", "--folder", str(folder)]) == 0
    files = list(folder.iterdir())
    assert len(files) == 4
    assert {(file.stat().st_uid, file.stat().st_gid) for file in files} == {(12345, 23456)}
    assert {file.stat().st_mode & 0o777 for file in folder.glob("*.pem")} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_root_gives_away_no_file_that_was_there_before(tmp_path, link):
    other = tmp_path / "other"
    other.touch(mode=0o600)
    folder = tmp_path / "ring"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 23456)
    link(other, folder / "keys.lock")
    main(["keys", "new", "--folder", str(folder)])
    assert other.stat().st_uid == 0
    assert not list(folder.glob("*.pem")) or link is os.link
