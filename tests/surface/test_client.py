"""The real dbguardctl against a daemon that answers from a table: output, exit statuses, terminals, interruptions."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dbguardd import errors
from tests.surface import answers
from tests.surface.answers import APP_1, APP_5, JOB
from tests.surface.conftest import Ctl, environment
from tests.surface.fake import FakeDaemon


def test_status_says_it_and_exits_with_3(ctl: Ctl) -> None:
    done = ctl("status")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[1] == f"Times are {time_zone()}."
    assert re.search(r"^✖  cache +sqlite", done.stdout, re.M)
    assert ctl().stdout == done.stdout


def time_zone() -> str:
    berlin = {"TZ": "Europe/Berlin", "PATH": os.environ["PATH"]}
    name, offset = subprocess.check_output(["date", "+%Z %z"], env=berlin, text=True).split()
    return f"{name} (UTC{offset[:3]}:{offset[3:]})"


def test_status_of_the_healthy_exits_with_0(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.routes["GET /status"] = answers.status((answers.APP,))
    assert ctl("status").returncode == 0
    assert ctl("status", "app").returncode == 0


def test_json_is_what_the_daemon_said(ctl: Ctl) -> None:
    assert json.loads(ctl("--json", "status").stdout) == answers.status()
    assert json.loads(ctl("status", "--json").stdout) == answers.status()
    assert [row["name"] for row in json.loads(ctl("status", "app", "--json").stdout)["databases"]] == ["app"]


COMMANDS = [
    ["status"], ["status", "app"], ["list", "app"], ["list", "app", "--why", "--all"], ["list", "crm"],
    ["show", APP_1], ["show", "app"], ["show", JOB], ["backup", "app"], ["backup", "app", "--full", "--no-wait"],
    ["backup", "--all", "--note", "x"], ["verify", "app"], ["verify", APP_1], ["restore", "app", "--dry-run"],
    ["restore", "app", "--at", "yesterday 09:00", "--to", "look.db"], ["restore", "app", "--id", APP_1],
    ["restore", "app", "--in-place", "--confirm", "app"], ["restore", "undo", "app", "--confirm", "app"],
    ["restore", "app", "--undo", "--confirm", "app"], ["undo", "app", "--confirm", "app"], ["check"],
    ["query", "app", "select 1", "--at", "yesterday 09:00"], ["query", "app", "select 1", "--id", APP_1],
    ["diff", "app", "--from", "3h ago", "--to", APP_1], ["diff", "app", "--from", APP_1, "--summary"],
    ["undelete", "app", "--table", "orders", "--at", "3h ago"], ["verify", "--all"],
    ["check", "app", "--data"], ["prune", "--dry-run"], ["prune", "app", "--confirm", "app"],
    ["hold", APP_1, "--reason", "audit"], ["release", APP_1], ["recall", APP_5],
    ["protect", "/x/app.db"],
    ["unprotect", "app", "--confirm", "app"], ["unprotect", "app", "--dry-run"],
    ["protect", "/x/app.db", "--name", "app", "--dry-run"], ["reload"], ["config", "check"], ["config", "show"],
    ["config", "show", "--origin"], ["config", "explain", "database.app.keep"], ["config", "schema"],
    ["config", "diff"], ["config", "accept"], ["key", "list"], ["key", "recovery-sheet"], ["schedule", "--next", "3"],
    ["pause", "app", "--for", "2h"], ["pause", "app"], ["resume", "app"], ["run", "app", "backup"], ["job", "list"],
    ["job", "list", "--database", "app", "--state", "done", "--limit", "3"], ["job", "show", JOB],
    ["job", "watch", JOB], ["job", "cancel", JOB], ["log"], ["log", "app"], ["log", "crm", "-v", "-n", "5"],
    ["log", "--errors", "--since", "2026-09-12 09:14", "--until", "2026-09-12 09:20"],
    ["events"], ["events", "--after", "41", "--job", JOB],
    ["audit", "show"], ["audit", "show", "--after", "3", "--limit", "4"], ["audit", "verify"], ["explain", "DBG-3002"],
    ["completion", "fish"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_works_and_has_json(
    words: list[str], inside: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    status = inside(*words)
    plain = capsys.readouterr()
    assert status in (0, 3), plain.err
    assert plain.out
    assert inside("--json", *words) == status
    answer = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"dbguard\.[a-z_-]+/1", answer["schema"])


def test_the_contract_keys_of_jobs(inside: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for verb, key in (("backup", "backup"), ("verify", "proof"), ("restore", "target")):
        inside("--json", verb, "app")
        answer = json.loads(capsys.readouterr().out)
        assert (answer["schema"], answer["job"]["state"]) == (f"dbguard.{verb}/1", "done")
        assert answer["job"]["id"] and answer[key] == answers.RESULTS[verb][key]


def test_requests_reach_the_daemon_as_typed(
    inside: Callable[..., int], daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside("backup", "app", "--full", "--note", "before the move")
    inside("restore", "app", "--to", "look.db", "--at", "2026-01-12 08:59")
    inside("--utc", "restore", "app", "--at", "2026-01-12 08:59")
    inside("restore", "app", "--tablespace", "a=/srv/a", "--tablespace", "b=/srv/b,c=/srv/c")
    inside("pause", "app", "--for", "1h30min")
    assert daemon.bodies("POST /jobs/backup") == [
        {"database": "app", "full": True, "verify": False, "note": "before the move", "successor": False}
    ]
    first, second, third = daemon.bodies("POST /jobs/restore")
    assert third["tablespace"] == "a=/srv/a,b=/srv/b,c=/srv/c" and second["tablespace"] == ""
    assert (first["to"], first["at"]) == (str(tmp_path / "look.db"), "2026-01-12T07:59:00Z")
    assert second["at"] == "2026-01-12T08:59:00Z"
    assert daemon.bodies("POST /databases/app/pause") == [{"seconds": 5400.0}]


def test_a_lost_answer_does_not_make_a_second_job(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.lose_answers = 1
    assert inside("backup", "app") == 0
    first, second = daemon.keys
    assert first == second and len(first) >= 32
    assert inside("backup", "app") == 0
    assert daemon.keys[2] != first
    daemon.lose_answers = 2
    assert inside("backup", "app") == 6
    assert "the daemon ended the connection" in capsys.readouterr().err


def test_a_backup_waits_for_the_proof_that_follows(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = answers.job(
        "verify", "queued", id="01K4Z7Q2AB0000000000000J99", request={"database": "app", "backup": APP_1}
    )
    daemon.jobs[follower["id"]] = [follower, {**follower, "state": "done", "result": answers.RESULTS["verify"]}]
    result = {**answers.RESULTS["backup"], "verify_job": follower["id"]}
    daemon.verb_jobs["backup"] = [answers.job("backup", result=result)]
    assert inside("backup", "app") == 0
    assert "can be restored in 9.1 s" in capsys.readouterr().out
    assert inside("--json", "backup", "app") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["proof"]["grade"] == "proven" and answer["backup"]["id"] == APP_1
    assert (answer["job"]["verb"], answer["proof_job"]["verb"]) == ("backup", "verify")
    daemon.jobs[follower["id"]] = [{**follower, "state": "failed", "problem": errors.ProofFailed("app: no").problem()}]
    assert inside("backup", "app") == 4


@pytest.mark.parametrize("kind", errors.OUTCOMES.values(), ids=lambda kind: kind.code)
def test_every_outcome_of_the_daemon_is_reported_and_has_its_exit_status(
    kind: type[errors.GuardError], inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.routes["GET /status"] = kind(
        "app: what", detail="why", hints=["dbguardctl undo it"], facts={"free_bytes": 7}
    )
    assert inside("status") == kind.exit_status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error[{kind.code}]: app: what\n       why\n")
    assert shown.err.endswith("       fix  dbguardctl undo it\n")
    assert inside("--json", "status") == kind.exit_status
    problem = json.loads(capsys.readouterr().err)
    assert (problem["code"], problem["exit_code"], problem["free_bytes"]) == (kind.code, kind.exit_status, 7)
    assert problem["type"] == f"urn:dbguard:error:{kind.code}"


@pytest.mark.parametrize("state", ["failed", "cancelled", "interrupted"])
def test_a_job_that_fails_fails_the_command(
    state: str, inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = errors.ProofFailed("app: 2 rows are missing").problem()
    daemon.verb_jobs["verify"] = [answers.job("verify", state, problem=problem)]
    assert inside("verify", "app") == 4
    assert "error[DBG-6001]: app: 2 rows are missing" in capsys.readouterr().err
    assert inside("--json", "verify", "app") == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["job"]["state"] == state
    assert json.loads(shown.err.splitlines()[-1])["job"].startswith("01K4")


def test_one_of_many_that_fails_does_not_stop_the_others(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.verb_jobs["backup"] = errors.Busy("app: busy")
    assert inside("--json", "backup", "--all") == 7
    rows = json.loads(capsys.readouterr().out)["jobs"]
    assert [row["problem"]["code"] for row in rows] == ["DBG-0005"] * 4


def test_waiting_may_end_before_the_job(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.verb_jobs["backup"] = [answers.job("backup", "running", step="pages")]
    assert inside("backup", "app", "--timeout", "0.2s") == 12
    assert "dbguardctl job watch 01K4" in capsys.readouterr().err


def test_a_job_that_is_tried_again_says_so(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {**errors.SourceLocked("app: locked").problem(), "next_try_at": "2027-03-04T05:06:07Z"}
    again = answers.job("backup", "queued", attempt=2, problem=problem)
    daemon.verb_jobs["backup"] = [answers.job("backup", "running"), again, answers.job("backup", result={})]
    assert inside("backup", "app") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"attempt 1 failed, it is tried again \S.*\d\d:06: app: locked \[DBG-\d{4}\]", said)
    assert "Ctrl-C only stops waiting" in said and "To cancel it: dbguardctl job cancel 01K4" in said


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["statsu"], 2, "dbguardctl status"),
        (["job", "lst"], 2, "dbguardctl job list"),
        (["list", "app", "--whi"], 2, "--why"),
        (["list"], 2, "list: which database?"),
        (["backup"], 2, "name a database, or use --all"),
        (["backup", "app", "--all"], 2, "name a database, or use --all"),
        (["status", "appp"], 8, "Did you mean app?"),
        (["list", "appp"], 8, "Did you mean app?"),
        (["list", "../etc"], 2, "is not a name"),
        (["restore", "app", "--at", "soon"], 2, "Write it like"),
        (["restore", "app", "--at", "now", "--id", "01"], 2, "give one"),
        (["restore", "app", "--to", "x", "--in-place"], 2, "give one"),
        (["restore", "app", "--in-place"], 10, "dbguardctl restore app --in-place --confirm app"),
        (["restore", "app", "--in-place", "--confirm", "ap"], 10, "--confirm says 'ap'"),
        (["restore", "app", "--in-place", "--confirm", "ap"], 10, "dbguardctl restore app --in-place --confirm app"),
        (["restore", "undo", "app"], 10, "dbguardctl restore undo app --confirm app"),
        (["restore", "undo", "app", "--to", "x"], 2, "takes only --confirm"),
        (["restore", "app", "crm"], 2, "one database at a time"),
        (["prune", "--confirm", "app"], 2, "for one database"),
        (["verify", JOB], 2, "neither a database nor a backup"),
        (["explain", "DBG-9999"], 8, "there is no such code"),
        (["pause", "app", "--for", "ever"], 2, "not a length of time"),
        (["key", "recovery-test"], 2, "one line with the recovery key"),
    ],
    ids=str,
)
def test_mistakes(
    words: list[str], status: int, said: str, inside: Callable[..., int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115
    assert inside(*words) == status
    shown = capsys.readouterr()
    assert said in shown.err and shown.out == ""
    assert inside("--json", *words) == status
    assert json.loads(capsys.readouterr().err)["exit_code"] == status
    sys.stdin.close()


def test_nothing_was_asked_of_the_daemon_without_the_typed_name(inside: Callable[..., int], daemon: FakeDaemon) -> None:
    inside("restore", "app", "--in-place", "--confirm", "App")
    assert daemon.bodies("POST /jobs/restore") == []


def test_no_daemon(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("status", "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 6
    assert "the socket does not exist" in done.stderr and "dbguardd run restore NAME --to PLACE" in done.stderr
    assert f"dbguardd --policy FILE --state DIRECTORY --socket {tmp_path}/none.sock" in done.stderr
    for words, way in ((["check"], "dbguardd --check-config"), (["explain", "retry"], "man dbguard.toml")):
        done = ctl("config", *words, "--socket", str(tmp_path / "none.sock"))
        assert (done.returncode, way in done.stderr) == (6, True)
    assert ctl("status", "--socket", f"/{'x' * 200}").returncode == 6


@pytest.mark.parametrize("answer", [b"not json", b"[1]", b""])
def test_an_answer_that_is_none(answer: bytes, ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.routes["GET /status"] = answer
    done = ctl("status")
    assert done.returncode == 1 and "error[DBG-0008]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_answer_makes_a_traceback(
    words: list[str], inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.routes = {route: {"schema": "dbguard.other/1"} for route in daemon.routes}
    daemon.verb_jobs = dict.fromkeys(answers.RESULTS, [{"id": "x"}])
    status = inside(*words)
    shown = capsys.readouterr()
    assert status in (0, 1, 2), shown.err
    assert status == 0 or shown.err.splitlines()[-1].lstrip().startswith(("fix", "try"))


def test_a_full_disk_is_no_success(daemon: FakeDaemon) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dbguardctl", "status"], env=environment(daemon.socket), stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "dbguardctl: the answer cannot be written: No space left on device\n"


def test_the_recovery_key_comes_from_standard_input(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = ctl("key", "recovery-test", "main", input="# created: today\nAGE-SECRET-KEY-1QQ\n")
    assert done.returncode == 0 and "proven" in done.stdout
    assert daemon.bodies("POST /keys/main/recovery-test") == [{"identity": "AGE-SECRET-KEY-1QQ"}]


@pytest.mark.parametrize("verb", ["recover", "recovery-test"])
def test_the_name_of_a_key_is_looked_at_before_its_secret_is_asked_for(ctl: Ctl, daemon: FakeDaemon, verb: str) -> None:
    done = ctl("key", verb, "mian", input="AGE-SECRET-KEY-1QQ\n")
    assert done.returncode == 8 and "Did you mean main?" in done.stderr and "dbguardctl key list" in done.stderr
    assert [asked[:2] for asked in daemon.asked] == [("GET", "/keys")]
    two = ctl("key", verb, input="one\ntwo\n")
    assert two.returncode == 2 and f"dbguardctl key {verb} main < FILE" in two.stderr


def test_the_qr_code_is_private_and_never_overwrites(ctl: Ctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "sheet.svg"
    assert ctl("key", "recovery-sheet", "--svg", str(path)).returncode == 0
    assert path.read_text() == "<svg/>" and path.stat().st_mode & 0o777 == 0o600
    asked = len(daemon.asked)
    assert ctl("key", "recovery-sheet", "--svg", str(path)).returncode == 10
    assert len(daemon.asked) == asked  # no second recovery key was made
    daemon.routes["POST /keys/main/recovery-sheet"] = errors.NotPermitted("main: no")
    assert ctl("key", "recovery-sheet", "--svg", str(tmp_path / "b.svg")).returncode == 5
    assert not (tmp_path / "b.svg").exists()


def test_init_begins_a_policy_once(ctl: Ctl, tmp_path: Path) -> None:
    path = tmp_path / "etc" / "policy.toml"
    assert ctl("init", "--policy", str(path)).returncode == 0
    assert "\nversion = 1\n" in path.read_text()
    assert ctl("init", "--policy", str(path)).returncode == 10


def test_colours_only_where_wanted(ctl: Ctl) -> None:
    assert "\x1b" not in ctl("status").stdout
    assert "\x1b[" in ctl("--color", "always", "status").stdout


def test_without_utf8_marks_are_words(ctl: Ctl) -> None:
    done = ctl("status", LANG="C")
    assert done.stdout.isascii() and "\nFAIL  cache" in done.stdout


# ------------------------------------------------------------------------------------------------ on a terminal


_ON_ITS_OWN_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("dbguardctl", run_name="__main__", alter_sys=True)
"""


class Terminal:
    """dbguardctl on a terminal."""

    def __init__(self, daemon: FakeDaemon, *words: str, **more: str) -> None:
        self._master, slave = pty.openpty()
        env = environment(daemon.socket, TERM="xterm-256color", **more)
        self.child = subprocess.Popen(
            [sys.executable, "-c", _ON_ITS_OWN_TERMINAL, *words], env=env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def read_until(self, words: str) -> str:
        while words not in self.text and self._more():
            pass
        assert words in self.text, self.text
        return self.text

    def type(self, words: str) -> None:
        os.write(self._master, words.encode())

    def end(self) -> int:
        try:
            while self._more():
                pass
            return self.child.wait(120)
        finally:
            self.child.kill()
            self.child.wait()
            os.close(self._master)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 120)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def test_a_terminal_has_colours(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "status")
    assert terminal.end() == 3 and "\x1b[1;31m✖\x1b[0m" in terminal.text
    plain = Terminal(daemon, "status", NO_COLOR="1")
    plain.end()
    assert "\x1b" not in plain.text and "✖" in plain.text


def test_in_place_asks_for_the_name(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "restore", "app", "--in-place")
    terminal.read_until("Type app to go on: ")
    assert 'replaces the live database "app" (1.04 GiB)' in terminal.text
    terminal.type("app\n")
    assert terminal.end() == 0
    assert daemon.bodies("POST /jobs/restore")[0]["confirm"] == "app"


def test_a_recovery_key_is_dropped_after_a_question(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "key", "recovery-drop", "age1")
    terminal.read_until("Type age1 to go on: ")
    assert "will no longer open the backups. Recovery keys that stay: " in terminal.text
    terminal.type("age1\n")
    terminal.end()
    assert daemon.bodies("POST /keys/main/recovery-drop") == [{"recipient": "age1", "confirm": "age1"}]


def test_in_place_goes_no_further_with_another_name(daemon: FakeDaemon) -> None:
    daemon.routes["GET /databases/app/backups"] = {"backups": [{"engine": "postgresql", "method": "pages"}]}
    terminal = Terminal(daemon, "restore", "app", "--in-place")
    terminal.read_until("Type app to go on: ")
    terminal.type("yes\n")
    assert terminal.end() == 10
    assert daemon.bodies("POST /jobs/restore") == []


def test_the_recovery_key_is_typed_without_echo(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "key", "recovery-test")
    terminal.read_until("not shown): ")
    terminal.type("AGE-SECRET-KEY-1ZZ\n")
    terminal.read_until("56 characters more")
    terminal.type("\n")
    assert terminal.end() == 0
    assert "1ZZ" not in terminal.text
    assert daemon.bodies("POST /keys/main/recovery-test") == [{"identity": "AGE-SECRET-KEY-1ZZ"}]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_recovery_key_is_typed_in_the_lines_of_the_sheet_and_no_line_of_it_is_shown(
    daemon: FakeDaemon, at_once: bool
) -> None:
    """Nor left for the shell: the rest of a sheet that was pasted with it is gone when the command ends."""
    lines = ["AGE-SECRET-KEY-1", *(" ".join(["zq3p"] * fours) for fours in (8, 6)), "zz"]
    terminal = Terminal(daemon, "key", "recover")
    terminal.read_until("not shown): ")
    if at_once:
        terminal.type("\n".join([*lines, "OPEN THE BACKUPS", ""]))
    else:
        missing = ("58 characters more", "26 characters more", "2 characters more", "")
        for line, more in zip(lines, missing, strict=True):
            terminal.type(f"{line}\n")
            terminal.read_until(more)
    terminal.end()
    assert daemon.bodies("POST /keys/main/recover") == [{"identity": "AGE-SECRET-KEY-1" + "ZQ3P" * 14 + "ZZ"}]
    assert "zq3p" not in terminal.text.lower() and "OPEN THE" not in terminal.text


def test_ctrl_c_leaves_the_job_alone(daemon: FakeDaemon) -> None:
    daemon.verb_jobs["backup"] = [
        answers.job("backup", "running", step="pages", done_bytes=1 << 20, total_bytes=1 << 30)
    ]
    terminal = Terminal(daemon, "backup", "app")
    terminal.read_until("1 MiB of 1 GiB")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "goes on. Watch it: " in terminal.text and "dbguardctl job watch 01K4" in terminal.text
    assert not [asked for asked in daemon.asked if "cancel" in asked[1]]


def test_ctrl_c_in_protect_says_what_stays(daemon: FakeDaemon) -> None:
    runs = answers.job("backup", "running", step="pages", done_bytes=1 << 20, total_bytes=1 << 30)
    daemon.routes["POST /protect"] = {
        "schema": "dbguard.protect/1", "database": "app", "wrote": "/etc/dbguard/conf.d/app.toml", "job": runs,
    }  # fmt: skip
    daemon.routes[f"GET /jobs/{JOB}"] = {"schema": "dbguard.job/1", "job": runs}
    terminal = Terminal(daemon, "protect", "/x/app.db", COLUMNS="300")
    terminal.read_until("1 MiB of 1 GiB")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "goes on. Watch it: " in terminal.text
    assert "/etc/dbguard/conf.d/app.toml stays" in terminal.text and "dbguardctl unprotect app" in terminal.text


def test_a_hostile_note_cannot_command_the_terminal(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon, "list", "app", "--color", "never")
    terminal.end()
    assert "\x1b" not in terminal.text and "\\x1b[31m" in terminal.text
