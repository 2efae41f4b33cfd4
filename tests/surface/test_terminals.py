"""Narrow terminals, plain ones, quiet runs, and words that depend on when and where they are read."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from dbguardctl.humanize import dated, when, zoned
from dbguardctl.screen import Cell, Screen, Table, text
from dbguardctl.views.facts import findings, one_line
from dbguardd.errors import NotFound, SourceLocked
from dbguardd.humanize import hint_word
from tests.surface import answers
from tests.surface.conftest import Ctl, environment
from tests.surface.fake import FakeDaemon
from tests.surface.golden import Terminal, drawn

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 9, 12, 7, 14, tzinfo=UTC)


class Narrow(Screen):
    """A terminal that is 60 columns wide."""

    def __init__(self) -> None:
        super().__init__(Terminal(), terminal=True, colour=False, utf8=True)

    def _columns(self) -> int:
        return 60


def test_a_recipient_is_shown_whole_wherever_it_has_to_be_copied(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    recipients = [f"age1{letter * 58}" for letter in "qz"]
    row = {"name": "main", "kind": "machine", "recovery": recipients, "known": True, "recipients": []}
    daemon.routes["GET /keys"] = {"schema": "dbguard.keys/1", "keys": [row]}
    assert inside("key", "list") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown[1:]] == [["main", "machine", "never", one] for one in recipients]
    rows = [("main", "machine", "never", one) for one in recipients]
    narrow = drawn([Table(("KEY", "KIND", "TESTED", "RECOVERY"), rows)], Narrow())
    assert all(one in narrow for one in recipients)
    sheet = {"sheet_text": "AGE-SECRET-KEY-1X", "identity": "x", "recipient": "age1x", "others": recipients}
    daemon.routes["POST /keys/main/recovery-sheet"] = sheet
    assert inside("key", "recovery-sheet") == 0
    assert f"dbguardctl key recovery-drop {recipients[1]} main" in capsys.readouterr().err


def test_of_the_findings_of_a_check_an_event_shows_how_many_there_are() -> None:
    rows = [{"name": "x", "outcome": outcome, "detail": "y"} for outcome in ("ok", "failed", "failed", "inconclusive")]
    assert one_line({"findings": rows}, UTC) == "findings 4 (2 failed, 1 inconclusive)"
    assert one_line({"chains": [{"chain": "x"}], "names": ["a", "b"]}, UTC) == "chains 1, names a, b"


@pytest.mark.parametrize("fold", [frozenset[int](), frozenset({2})], ids=["numbers", "prose"])
def test_no_word_is_broken_on_a_narrow_terminal(fold: frozenset[int]) -> None:
    row: list[Cell | str] = [
        Cell("*"),
        "orders",
        "41 min ago (goal 1 m)",
        "12 Sep 03:00",
        "4 m 10 s",
        "tonight 01:00, then Sun",
    ]
    columns = ("", "DATABASE", "COULD RESTORE TO", "PROVEN", "TAKES", "NEXT")
    shown = drawn([Table(columns, [row], fold=fold)], Narrow())
    assert all(len(line) <= 60 for line in shown.splitlines())
    assert all(str(cell) in shown for cell in row[1:])
    assert shown.splitlines()[0] == "* orders"


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["ok"], "1 check, all passed."),
        (["ok", "ok", "not configured"], "2 checks, all passed. Not configured: 1."),
        (["ok", "inconclusive", "not configured"], "1 of 2 checks did not pass. Not configured: 1."),
    ],
)
def test_what_was_not_looked_at_is_counted_among_no_checks(outcomes: list[str], said: str) -> None:
    shown = drawn(
        findings([{"name": "x", "outcome": outcome} for outcome in outcomes], UTC),
        Screen(Terminal(), terminal=False, colour=False, utf8=True),
    )
    assert shown.splitlines()[-1].strip() == said


def test_commands_to_paste_begin_as_the_program_was_called() -> None:
    screen = Screen(Terminal(), terminal=False, colour=False, utf8=True, program="bin/dbguardctl --socket /s")
    lines = ("dbguardctl status", "sudo dbguardctl status", "dbguardctl --socket /t status", "see dbguardctl status",
             "dbguardd --socket /s &")  # fmt: skip
    assert drawn([text(Cell(line, "try")) for line in lines], screen).splitlines() == [
        "bin/dbguardctl --socket /s status", "sudo bin/dbguardctl --socket /s status",
        "dbguardctl --socket /t status", "see dbguardctl status", "bin/dbguardd --socket /s &",
    ]  # fmt: skip


def test_a_named_socket_is_in_what_is_shown_to_paste(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = ctl("--socket", str(daemon.socket), "status", DBGUARD_SOCKET="/nonexistent")
    assert f"dbguardctl --socket {daemon.socket} " in done.stdout
    assert not re.search(r"(fix|try)  dbguardctl (?!--socket)", done.stdout)


@pytest.mark.parametrize(
    ("hint", "word"),
    [
        ("dbguardctl backup app --full", "fix"), ("systemctl restart dbguardd", "fix"), ("chmod go-w /x", "fix"),
        ("ls -l /x", "try"), ("dbguardctl status", "try"), ("dbguardctl restore app --dry-run", "try"),
        ("choose another file with --svg", "try"), ("systemctl status dbguardd", "try"),
        ("dbguardctl key --help", "try"),
    ],
)  # fmt: skip
def test_a_fix_is_a_command_that_changes_something(hint: str, word: str) -> None:
    assert hint_word(hint) == word


def test_moments_of_the_daemon_are_shown_in_the_zone_of_the_screen() -> None:
    assert zoned("app: paused until 2026-09-12 12:00 UTC", NOW, BERLIN) == "app: paused until today 14:00"
    assert zoned("the state of 2026-09-11T23:30:05.841Z goes", NOW, BERLIN) == "the state of today 01:30 goes"
    said = "none as old as 2026-09-11T23:30:05.841Z, only 2026-09-11 23:31:00Z"
    assert zoned(said, NOW, BERLIN, exact=True) == "none as old as today 01:30:05.841, only today 01:31"
    assert dated("proven at 2026-09-11T23:30:05.841Z", BERLIN) == "proven at 2026-09-12 01:30:05+02:00"
    assert zoned("version 2026-09-12, 12:00", NOW, BERLIN) == "version 2026-09-12, 12:00"


def test_tonight_is_not_the_night_after_this_one() -> None:
    assert when("2026-09-13T03:00:00Z", NOW, BERLIN) == "tonight 05:00"
    assert when("2026-09-13T03:00:00Z", datetime(2026, 9, 12, 3, 5, tzinfo=UTC), BERLIN) == "tomorrow 05:00"


def test_quiet_says_the_result_only(ctl: Ctl) -> None:
    done = ctl("backup", "app", "-q")
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")
    assert done.stdout.startswith("ok  backup ")
    assert len(ctl("prune", "app", "--dry-run", "-q").stdout.splitlines()) > 2


@pytest.mark.parametrize("words", [["backup", "--all"], ["verify", "--all"], ["check"], ["prune"]], ids=" ".join)
def test_several_jobs_that_are_not_waited_for_are_printed_by_their_ids(
    ctl: Ctl, daemon: FakeDaemon, words: list[str]
) -> None:
    names = [row["name"] for row in answers.status()["databases"]]
    done = ctl(*words, "--no-wait")
    assert done.stdout.split() == list(daemon.jobs) and len(daemon.jobs) == len(names)
    assert [body["database"] for body in daemon.bodies(f"POST /jobs/{words[0].replace('prune', 'expire')}")] == names


def test_an_interruption_before_the_answer_says_that_the_job_may_run(daemon: FakeDaemon) -> None:
    asked, over = threading.Event(), threading.Event()

    def slowly(_query: dict[str, str], _body: object) -> NotFound:
        asked.set()
        over.wait(120)
        return NotFound("app: gone")

    daemon.routes["POST /jobs/backup"] = slowly
    argv = [sys.executable, "-m", "dbguardctl", "backup", "app"]
    with subprocess.Popen(argv, env=environment(daemon.socket), stderr=subprocess.PIPE, text=True) as child:
        assert asked.wait(120)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
        over.set()
    assert child.returncode == 130
    assert said.strip() == "interrupted while a job was requested: it may run. See: dbguardctl job list"


def _shell(daemon: FakeDaemon, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], env=environment(daemon.socket), capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def test_closed_streams(daemon: FakeDaemon) -> None:
    command = f"'{sys.executable}' -m dbguardctl status <&- >&-; echo $?"
    done = _shell(daemon, command)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_reader_that_has_seen_enough(daemon: FakeDaemon) -> None:
    command = f"{{ '{sys.executable}' -m dbguardctl config schema; echo $? >&2; }} | head -n1"
    daemon.routes["GET /config/schema"] = {"long": "x" * (1 << 20)}  # more than a pipe holds
    done = _shell(daemon, command)
    assert (done.stderr, done.stdout) == ("0\n", "{\n")


def test_without_utf8_there_is_no_code_of_blocks(ctl: Ctl, daemon: FakeDaemon) -> None:
    sheet = "IDENTITY\n\n    \u2588\u2580\u2584\n    \u2584 \u2588\n\nOPEN"
    daemon.routes["POST /keys/main/recovery-sheet"] = {"sheet_text": sheet, "identity": "x", "recipient": "age1x"}
    shown = ctl("key", "recovery-sheet", LANG="C").stdout
    assert "\\u" not in shown
    assert "no QR code" in shown
    assert "\u2588" in ctl("key", "recovery-sheet").stdout


def test_a_whole_sheet_is_taken_for_its_identity(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.routes["POST /keys/main/recovery-test"] = {"ok": True}
    sheet = f"RECOVERY\n\n    AGE-SECRET-KEY-1\n    {' '.join(['ABCD'] * 8)}\n    {' '.join(['EFGH'] * 6)} IJ\n\n  QR\n"
    assert ctl("key", "recovery-test", input=sheet).returncode == 0
    (body,) = daemon.bodies("POST /keys/main/recovery-test")
    assert body["identity"] == f"AGE-SECRET-KEY-1{'ABCD' * 8}{'EFGH' * 6}IJ"


@pytest.mark.parametrize("words", [["events", "--database", "nope"], ["job", "list", "--database", "nope"]])
def test_nothing_is_not_known_of_a_database_that_is_not_there(ctl: Ctl, daemon: FakeDaemon, words: list[str]) -> None:
    daemon.routes |= {"GET /events": {"events": []}, "GET /jobs": {"jobs": []}}
    assert ctl(*words).returncode == 8
    words[-1] = "app"
    assert ctl(*words).returncode == 0


def test_all_data_is_read_once_for_each_storage(ctl: Ctl, daemon: FakeDaemon) -> None:
    status = answers.status()
    *names, orphan = [row["name"] for row in status["databases"]]
    status["databases"][-1]["state"] = "orphaned"  # its backups are checked, too
    daemon.routes |= {"GET /status": status, f"GET /databases/{orphan}/backups": {"backups": [{"storage": "local"}]}}
    daemon.routes["GET /config"] = {"policy": {"database": {name: {"storage": ["local"]} for name in names}}}
    ctl("check", "--data")
    names.append(orphan)
    assert [body["data"] for body in daemon.bodies("POST /jobs/check")] == [True, *[False] * (len(names) - 1)]


def test_the_version_as_json(ctl: Ctl) -> None:
    for words in (["--json", "--version"], ["--version", "--json"]):
        assert json.loads(ctl(*words).stdout)["schema"] == "dbguard.version/1"
    assert json.loads(ctl("--json", "key", "--help").stdout)["schema"] == "dbguard.help/1"


def test_a_program_that_waits_hears_why_an_attempt_failed(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {**SourceLocked("app: locked").problem(), "next_try_at": "2027-03-04T05:06:07Z"}
    again = answers.job("backup", "queued", attempt=2, problem=problem)
    daemon.verb_jobs["backup"] = [answers.job("backup", "running"), again, answers.job("backup", result={})]
    assert inside("--json", "backup", "app") == 0
    said = capsys.readouterr()
    assert json.loads(said.err) == problem
    assert json.loads(said.out)["job"]["state"] == "done"
