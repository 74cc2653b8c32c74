"""The command line as such: its table, its exit codes, its two ways in."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap

import pytest

from airflow_envoy import command
from airflow_envoy.command import arguments
from airflow_envoy.command.report import say
from airflow_envoy.refusal import Refusal

PATHS = [path for path, _ in arguments.walk()]


@pytest.mark.parametrize("path", [(), ("keys",), *PATHS], ids=" ".join)
def test_every_command_explains_itself(path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([*path, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: python -m airflow_envoy" in shown
    if path in PATHS:
        assert "examples:" in shown
        assert "--json" in shown


@pytest.mark.parametrize(
    ("path", "one"), list(arguments.walk()), ids=lambda value: str(getattr(value, "name", value))
)
def test_every_command_can_be_carried_out(path, one):
    assert callable(one.load())
    # Airflow's help takes text in square brackets for colours.
    assert "[" not in one.help + one.description + "".join(
        str(a.options.get("help", "")) for a in one.arguments
    )
    for example in one.examples:
        words = example.split(" > ")[0].split()
        assert arguments.parser("x").parse_args(words).command is one, example


@pytest.mark.parametrize(
    "argv",
    [[], ["keys"], ["nothing"], ["keys", "retire"], ["check-roles"], ["keys", "new", "--alg", "HS256"]],
)
def test_wrong_usage_is_exit_code_2(argv):
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == command.USAGE


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604800), ("0", 0)]
)
def test_spans_are_read(text, seconds):
    assert arguments.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", "1w", "nan", "inf", "1 0", "9999d"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(Exception, match="is no span"):
        arguments.seconds(text)


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (command.Problem("no ring", "make one"), 3, "no ring"),
        (command.Problem("which?", code=2), 2, "which?"),
        (Refusal("key_unavailable", "no key"), 3, "no key [key_unavailable]"),
        (
            PermissionError(13, "Permission denied", "/secret/keys.json"),
            3,
            "/secret/keys.json: Permission denied",
        ),
    ],
)
def test_what_a_user_can_cause_is_told_in_words(raised, code, words, capsys, monkeypatch):
    def run(_):
        raise raised

    monkeypatch.setattr(arguments.Command, "load", lambda _: run)
    assert command.main(["keys", "list", "--json"]) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert json.loads(shown.out)["error"]["message"] in shown.err


def run(script: str, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(p for p in sys.path if p), **variables},
    )


WITHOUT_AIRFLOW = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("airflow", "yaml"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Missing())
    from airflow_envoy.command import main
    sys.exit(main(sys.argv[1:]))
"""


def test_keys_need_no_airflow(tmp_path):
    folder = str(tmp_path / "ring")
    for argv in (["keys", "new"], ["keys", "rotate"], ["keys", "list"], ["keys", "jwks"]):
        done = run(WITHOUT_AIRFLOW, *argv, "--folder", folder)
        assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["keys"]) == 2
    done = run(WITHOUT_AIRFLOW, "keys", "list", AIRFLOW__AIRFLOW_ENVOY__KEYS=folder)
    assert done.returncode == 0, done.stderr
    done = run(WITHOUT_AIRFLOW, "keys", "list")
    assert done.returncode == 2
    assert "which key ring?" in done.stderr


def test_without_airflow_the_other_commands_say_so(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrules: []\n")
    done = run(WITHOUT_AIRFLOW, "check-roles", str(policy), "--api-server", "http://127.0.0.1:1")
    assert (done.returncode, "PyYAML" in done.stderr) == (3, True)
    done = run(WITHOUT_AIRFLOW, "import-roles", "--database")
    assert (done.returncode, "needs Airflow" in done.stderr) == (3, True)
    done = run(WITHOUT_AIRFLOW, "doctor", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)["findings"]
    assert found[0]["text"] == "Airflow is not installed in this Python"


def test_a_reader_that_has_enough_is_no_fault(tmp_path):
    folder = str(tmp_path / "ring")
    assert run(WITHOUT_AIRFLOW, "keys", "new", "--folder", folder).returncode == 0
    script = """
        import os, sys
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        from airflow_envoy.command import main
        code = main(["keys", "jwks", "--folder", sys.argv[1]])
        sys.stdout.flush()
        sys.exit(code)
    """
    done = run(script, folder, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("late", [True, False])
def test_what_others_log_or_print_is_no_part_of_the_answer(late, capsys, monkeypatch):
    logger = logging.getLogger("airflow.test")
    logger.setLevel(logging.INFO)

    def run(_):
        # As Airflow does when it is loaded, and before that.
        handler = logging.StreamHandler(sys.stdout) if late else early
        logger.addHandler(handler)
        logger.info("logged")
        print("printed")
        say("answer")
        return 0

    early = logging.StreamHandler(sys.stdout)
    logger.addHandler(early)
    monkeypatch.setattr(arguments.Command, "load", lambda _: run)
    try:
        assert command.main(["keys", "list"]) == 0
        shown = capsys.readouterr()
        assert shown.out == "answer\n"
        assert "logged" in shown.err
        assert "printed" in shown.err
        logger.info("afterwards")
        assert "afterwards" in capsys.readouterr().out
    finally:
        logger.handlers.clear()


def test_airflow_gets_every_command_of_the_table():
    cli_config = pytest.importorskip("airflow.cli.cli_config")
    from airflow_envoy.command.cli import airflow_commands

    (envoy,) = airflow_commands()
    assert (type(envoy).__name__, envoy.name) == ("GroupCommand", "envoy")
    found = set()
    for entry in envoy.subcommands:
        below = entry.subcommands if isinstance(entry, cli_config.GroupCommand) else None
        for one in below if below is not None else [entry]:
            found.add((entry.name, one.name) if below is not None else (one.name,))
            flags = {flag for arg in one.args for flag in arg.flags}
            assert "--json" in flags
    assert found == set(PATHS)


def test_airflow_learns_the_exit_code(monkeypatch):
    pytest.importorskip("airflow.cli.cli_config")
    from airflow_envoy.command.cli import airflow_commands

    (envoy,) = airflow_commands()
    doctor = next(entry for entry in envoy.subcommands if entry.name == "doctor")
    for code in (0, 1, 3):
        monkeypatch.setattr(arguments.Command, "load", lambda _, code=code: lambda _: code)
        if code:
            with pytest.raises(SystemExit) as stopped:
                doctor.func(None)
            assert stopped.value.code == code
        else:
            assert doctor.func(None) is None


def test_the_provider_names_the_commands():
    from importlib import import_module

    from airflow_envoy.provider import get_provider_info

    (name,) = get_provider_info()["cli"]
    module, _, function = name.rpartition(".")
    assert callable(getattr(import_module(module), function))
