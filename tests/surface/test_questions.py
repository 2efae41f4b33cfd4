"""query, get, diff and undelete: what goes to which stream, in which form, and what is left of a failure."""

from __future__ import annotations

import csv
import io
import json
import resource
from pathlib import Path

import pytest

from dbguardd.errors import NotFound, TooCostly
from tests.surface import answers
from tests.surface.answers import APP_1, APP_5
from tests.surface.conftest import Ctl
from tests.surface.fake import FakeDaemon


def asked(daemon: FakeDaemon, verb: str) -> dict[str, object]:
    (body,) = daemon.bodies(f"POST /jobs/{verb}")
    return dict(body)


def test_the_rows_are_the_output_and_where_they_come_from_is_a_message(ctl: Ctl) -> None:
    done = ctl("query", "app", "select * from orders")
    assert done.returncode == 0
    assert "Müller\\x1b[31m" in done.stdout  # no terminal obeys a row
    assert f"backup {APP_1}, proven" in done.stderr
    assert "only the first 2 rows, there are more" in done.stderr
    quiet = ctl("-q", "query", "app", "select * from orders")
    assert (quiet.stdout, APP_1 in quiet.stderr) == (done.stdout, False)
    assert "there are more" in quiet.stderr  # that is part of the answer


def test_csv_is_data(ctl: Ctl) -> None:
    done = ctl("query", "app", "select * from orders", "--csv")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows == [["id", "who", "body"], ["7", "Müller\x1b[31m", "deadbeef"], ["8", "", "inf"]]
    assert ctl("--json", "query", "app", "select 1", "--csv").returncode == 2


def test_json_has_rows_and_where_they_come_from(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = json.loads(ctl("--json", "query", "app", "select 1", "--at", "2026-09-12 08:59").stdout)
    assert done["schema"] == "dbguard.query/1"
    assert (done["backup"], done["grade"], done["more"], done["row_count"]) == (APP_1, "proven", "rows", 2)
    assert done["rows"][0] == [7, "Müller\x1b[31m", {"base64": "3q2+7w=="}]
    assert asked(daemon, "query") == {
        "database": "app", "sql": "select 1", "backup": "", "at": "2026-09-12T06:59:00Z", "rows": 1000, "seconds": 60,
            "in_database": "",
    }  # fmt: skip


def test_a_full_disk_is_named_and_not_taken_for_a_storage(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "left over" / "orders.sql"
    file.parent.mkdir()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, allowed[1]))  # of the child, which inherits it
    try:
        done = ctl("get", "app", "--table", "orders", "--to", str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert (done.returncode, file.exists()) == (11, False)
    assert f"df -h '{file.parent}'" in done.stderr
    assert "prune" not in done.stderr


def test_a_moment_or_an_id_says_what_to_compare(ctl: Ctl, daemon: FakeDaemon) -> None:
    done = json.loads(ctl("--json", "diff", "app", "--from", "2026-09-12 08:59", "--to", APP_1[-6:]).stdout)
    assert done["schema"] == "dbguard.diff/1"
    assert (done["older"]["backup"], done["newer"]["backup"]) == (APP_5, APP_1)
    assert [len(done[name]) for name in ("definitions", "tables", "changes")] == [1, 3, 2]
    body = asked(daemon, "diff")
    assert (body["older"], body["newer"]) == ("2026-09-12T06:59:00Z", APP_1[-6:])
    assert json.loads(ctl("--json", "diff", "app", "--from", APP_1, "--summary").stdout)["changes"] == []
    assert ctl("diff", "app", "--from", "no-moment").returncode == 2
    assert ctl("diff", "app").returncode == 2


def test_a_text_goes_to_standard_output_or_into_a_new_file(ctl: Ctl, tmp_path: Path) -> None:
    text = answers.ANSWERS["get"].decode()
    done = ctl("get", "app", "--table", "orders")
    assert (done.returncode, done.stdout) == (0, text)
    assert "without 1 trigger" in done.stderr
    out = tmp_path / "orders.sql"
    for words in (["get", "app", "--table", "orders"], ["undelete", "app", "--table", "orders", "--id", APP_1]):
        done = ctl(*words, "--to", str(out))
        assert (done.returncode, out.read_text()) == (0, text), done.stderr
        assert done.stdout.startswith("ok  ") and str(out) in done.stdout
        assert out.stat().st_mode & 0o777 == 0o600
        again = ctl(*words, "--to", str(out))
        assert (again.returncode, "exists" in again.stderr, out.read_text()) == (10, True, text)
        assert "another name for the file" in again.stderr and "--in-place" not in again.stderr
        out.unlink()
    assert ctl("undelete", "app", "--table", "orders", "--id", APP_1, "--sql").stdout == text
    assert ctl("--json", "get", "app", "--table", "orders").returncode == 2
    assert ctl("get", "app", "--table", "orders", "--to", str(tmp_path / "none" / "x")).returncode == 2


@pytest.mark.parametrize("error", [TooCostly("app: too much"), NotFound("app: none")])
def test_nothing_is_left_of_a_question_that_fails(ctl: Ctl, daemon: FakeDaemon, tmp_path: Path, error) -> None:
    daemon.verb_jobs["get"] = error
    out = tmp_path / "orders.sql"
    done = ctl("get", "app", "--table", "orders", "--to", str(out))
    assert (done.returncode, done.stdout, out.exists()) == (error.exit_status, "", False)
    daemon.verb_jobs["get"] = [answers.job("get", "failed", problem=error.problem())]
    done = ctl("get", "app", "--table", "orders", "--to", str(out))
    assert (done.returncode, done.stdout, out.exists()) == (error.exit_status, "", False)


@pytest.mark.parametrize("typed", [[], ["--database", "wrong"], ["--database=wrong"]])
def test_the_command_that_names_the_database_names_no_other(ctl: Ctl, daemon: FakeDaemon, typed: list[str]) -> None:
    error = NotFound("app: none", hints=["--database crm  # or another of these"])
    daemon.verb_jobs["query"] = [answers.job("query", "failed", problem=error.problem())]
    done = ctl("query", "app", *typed, "select 1")
    assert "dbguardctl query app 'select 1' --database crm  # or another of these" in done.stderr


def test_missing_rows_are_shown_with_the_command_that_writes_the_sql(ctl: Ctl) -> None:
    done = ctl("undelete", "app", "--table", "orders", "--id", APP_1, "--where", "id > 7")
    assert "Müller" in done.stdout
    assert "7 rows of orders missing, the first 2 shown" in done.stderr
    assert f"undelete app --table orders --id {APP_1} --where 'id > 7' --to FILE" in done.stderr
    done = json.loads(ctl("--json", "undelete", "app", "--table", "orders", "--id", APP_1).stdout)
    assert (done["schema"], done["missing"], len(done["rows"])) == ("dbguard.undelete/1", 7, 2)
    without = ctl("undelete", "app", "--table", "orders")
    assert (without.returncode, "--at or --id" in without.stderr) == (2, True)


def test_rows_with_other_values_are_told_of_and_shown_with_both(ctl: Ctl, daemon: FakeDaemon, monkeypatch) -> None:
    found = {**answers.RESULTS["undelete"], "rows": 0, "listed": 0, "differing": 3}
    daemon.verb_jobs["undelete"] = [answers.job("undelete", result=found, request={"sql": False})]
    words = ["undelete", "app", "--table", "orders", "--id", APP_1]
    done = ctl(*words)
    assert "3 rows exist now with other values" in done.stderr
    assert f"dbguardctl undelete app --table orders --id {APP_1} --changed" in done.stderr
    changes = [line for line in answers.DIFFERENCE if line.get("change") == "changed"]
    monkeypatch.setitem(answers.ANSWERS, "undelete", b"".join(json.dumps(line).encode() + b"\n" for line in changes))
    found = {**answers.RESULTS["undelete"], "changed": True, "rows": 1, "listed": 1}
    daemon.verb_jobs["undelete"] = [answers.job("undelete", result=found, request={"sql": False})]
    done = ctl(*words, "--changed")
    assert " -> " in done.stdout and "1 row of orders with other values" in done.stderr and "--to FILE" in done.stderr
    told = json.loads(ctl("--json", *words, "--changed").stdout)
    assert (told["missing"], told["differing"], told["changes"], told["rows"]) == (None, 1, changes, [])
