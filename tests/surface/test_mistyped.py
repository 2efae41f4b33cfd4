"""What people and scripts type wrong: nothing else is done instead, and what is shown to paste does what was meant."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.surface import answers
from tests.surface.conftest import Ctl, environment
from tests.surface.fake import FakeDaemon


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "app", "--in-place", "--confirm", "app", "--id", ""],
        ["restore", "app", "--id", ""],
        ["restore", "app", "--at", ""],
        ["restore", "app", "--to", ""],
        ["restore", "app", "--in-place", "--confirm", ""],
        ["prune", "app", "--confirm", ""],
        ["backup", "app", "--timeout", ""],
        ["pause", "app", "--for", ""],
        ["log", "--since", ""],
        ["protect", ""],
        ["protect", "/x.db", "--name", ""],
        ["init", "--policy", ""],
        ["--socket", "", "status"],
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_a_value_left_out(ctl: Ctl, daemon: FakeDaemon, words: list[str]) -> None:
    done = ctl(*words)
    assert (done.returncode, daemon.asked) == (2, [])
    assert "empty" in done.stderr


def test_an_empty_note_is_no_reason_to_have_no_backup(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert ctl("backup", "app", "--note", "").returncode == 0
    assert daemon.bodies("POST /jobs/backup")[0]["note"] == ""


def fixes(stderr: str) -> list[str]:
    return re.findall(r"^ +(?:fix|try)  (.*)$", stderr, re.M)


def test_a_likely_command_keeps_what_followed_the_mistyped_one(ctl: Ctl) -> None:
    said = ctl("restoer", "app", "--id", "01 K").stderr
    assert "Did you mean dbguardctl restore app --id '01 K'" in said
    assert "Did you mean dbguardctl backup app --full?" in ctl("app", "backup", "--full").stderr


def test_a_guess_is_asked_and_not_given_as_the_fix(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = ctl("protct", "app")
    assert "Did you mean dbguardctl protect app" in done.stderr
    assert (done.returncode, daemon.asked, fixes(done.stderr)) == (2, [], ["dbguardctl --help"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["pause", "app", "--for", "2", "hours"], "dbguardctl pause app --for '2 hours'"),
        (["restore", "app", "--at", "yesterday", "09:00"], "dbguardctl restore app --at 'yesterday 09:00'"),
        (["restore", "--at", "3h", "ago", "app", "--dry-run"], "dbguardctl restore --at '3h ago' app --dry-run"),
        (["log", "--since", "yesterday", "09:00"], "dbguardctl log --since 'yesterday 09:00'"),
        (["hold", "01K4", "--reason", "tax", "audit"], "dbguardctl hold 01K4 --reason 'tax audit'"),
        (["undelete", "app", "--table", "t", "--at", "3h", "ago"], "dbguardctl undelete app --table t --at '3h ago'"),
    ],
    ids=lambda words: "" if isinstance(words, str) else " ".join(words),
)
def test_a_value_of_several_words_is_shown_with_quotes(
    ctl: Ctl, daemon: FakeDaemon, typed: list[str], meant: str
) -> None:
    daemon.routes |= {"GET /events": {"events": []}}
    done = ctl(*typed)
    assert done.returncode in (2, 8) and daemon.bodies("POST /jobs/restore") == []
    assert fixes(done.stderr) == [meant]
    assert "needs quotes" in done.stderr


@pytest.mark.parametrize(
    ("typed", "ours"), [("--backup", "--id"), ("--target", "--to"), ("--yes", "--confirm"), ("--snapshot=x", "--id")]
)
def test_the_name_that_other_tools_have_for_an_option_is_known(ctl: Ctl, typed: str, ours: str) -> None:
    done = ctl("restore", "app", typed)
    assert (done.returncode, f"Did you mean {ours}?" in done.stderr) == (2, True)
    assert "Did you mean --" not in ctl("status", typed).stderr  # it has none of these


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["promote", "app"], "dbguardd run promote NAME --to PATH"),
        (["standby", "app"], "dbguardd run standby NAME --to PATH"),
        (["coverage"], "dbguardctl list NAME"),
        (["restore", "app", "--follow"], "dbguardd run standby NAME --to PATH"),
    ],
)
def test_what_is_looked_for_in_another_place_is_found(ctl: Ctl, typed: list[str], meant: str) -> None:
    done = ctl(*typed)
    assert (done.returncode, fixes(done.stderr), "Did you mean" in done.stderr) == (2, [meant], False)


def test_a_missing_confirmation_is_added_to_what_was_typed(ctl: Ctl) -> None:
    words = ["restore", "app", "--id", "01K4", "--in-place", "--timeout", "2h"]
    (fix,) = fixes(ctl(*words).stderr)
    assert fix == "dbguardctl restore app --id 01K4 --in-place --timeout 2h --confirm app"


def test_who_wanted_a_dry_run_is_not_told_to_do_it(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = ctl("restore", "undo", "app", "--dry-run")
    assert (done.returncode, daemon.asked, fixes(done.stderr)) == (2, [], ["dbguardctl list app --why"])


def test_list_without_a_name_says_which_there_are(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = ctl("list")
    assert (done.returncode, "Databases: app, crm, cache, quiet." in done.stderr) == (2, True)
    daemon.routes["GET /status"] = {**answers.status(), "databases": answers.status()["databases"][:1]}
    assert ctl("list").stdout == ctl("list", "app").stdout


def test_what_is_not_known_is_answered_with_where_to_look(ctl: Ctl) -> None:
    assert fixes(ctl("explain", "DBG-9999").stderr) == ["man dbguard-errors"]
    assert fixes(ctl("help", "nope").stderr) == ["dbguardctl --help"]
    assert "beside the live one" in " ".join(ctl("restore", "--help").stdout.split())  # wherever its lines end


@pytest.mark.parametrize("group", ["key", "job", "config", "audit", "credential"])
def test_a_group_without_a_command_is_asked_for_help(ctl: Ctl, group: str) -> None:
    done = ctl(group)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Usage: dbguardctl {group} ")
    assert "\\n" not in done.stderr


def test_help_is_a_command_too(ctl: Ctl) -> None:
    assert ctl("help").stdout == ctl("--help").stdout
    assert ctl("help", "key", "list").stdout == ctl("key", "list", "--help").stdout
    assert "prune" in ctl("help").stdout


def test_a_message_is_one_line(ctl: Ctl) -> None:
    assert "\\n" not in ctl("completion").stderr
    assert "Choose from: bash, zsh, fish" in ctl("completion").stderr


def test_a_path_that_no_socket_can_have_is_called_so(ctl: Ctl) -> None:
    done = ctl("--socket", f"/tmp/{'a' * 120}", "status")
    assert done.returncode == 6
    assert "at most 107 bytes" in done.stderr


@pytest.mark.parametrize("words", [["protect"], ["restore", "app", "--to"]])
def test_a_path_that_cannot_be_told_is_said_to_be_so(
    inside: Callable[..., int], capsys, tmp_path: Path, monkeypatch, words: list[str]
) -> None:
    assert inside(*words, "/srv/caf\udce9.db") == 2
    assert "not UTF-8" in capsys.readouterr().err
    for char in "\n\x1b\x9b":
        assert inside(*words, f"/srv/a{char}[31m.db") == 2
        said = capsys.readouterr().err
        assert "control characters" in said and "ln -s" in said and f"a{char}" not in said
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert inside(*words, "app.db") == 2
    assert "the directory that you are in is gone" in capsys.readouterr().err


def test_a_place_that_may_not_be_written_is_no_matter_of_roles(inside: Callable[..., int], capsys) -> None:
    assert inside("init", "--policy", "/sys/dbguard/policy.toml") == 5
    said = capsys.readouterr().err
    assert said.startswith("error[DBG-0012]: /sys/dbguard/policy.toml: ")
    assert "role" not in said


def test_a_disk_that_is_full_leaves_no_half_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    command = [sys.executable, "-m", "dbguardctl", "init", "--policy", str(path)]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100))
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=full)  # noqa: PLW1509
    assert done.returncode == 11 and done.stderr.startswith("error[DBG-3002]: ")
    assert not path.exists()


def test_ctrl_c_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "dbguardctl", "status"], capture_output=True, text=True, check=False,
        env=environment(tmp_path / "api.sock", PYTHONPATH=f"{tmp_path}:{os.getcwd()}"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_value_that_is_missing_is_one_of_this_command(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("restore", "app", "--at") == 2
    said = capsys.readouterr().err
    assert "dbguardctl restore: option '--at' requires an argument" in said
    assert "dbguardctl restore --help" in said
