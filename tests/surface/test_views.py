"""Every answer looks as designed, at a fixed moment in a fixed zone, in UTF-8, ASCII and colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from dbguardctl.screen import Block, Cell, Screen, Table, speaks_utf8, text
from dbguardctl.session import error_blocks
from dbguardctl.views import backups, care, config, jobs, log, questions, status
from dbguardctl.views.setup import promise, protected, unprotected
from dbguardd.errors import KeyRefused, NoSpace, PolicyInvalid
from dbguardd.states import Health
from dbguardd.wire import StorageStatus
from tests.surface import answers
from tests.surface.answers import APP, APP_1, CRM, MAIN, NOW
from tests.surface.fake import ROUTES
from tests.surface.golden import approve, drawn, screen

BERLIN = ZoneInfo("Europe/Berlin")

Draw = Callable[[Screen], "list[Block]"]


def _job(verb: str, **request: object) -> list[Block]:
    row = answers.job(verb, result=answers.RESULTS[verb], request={"database": "app", **request})
    return jobs.finished(row, NOW, BERLIN)


def _log(s: Screen, *, verbose: bool) -> list[Block]:
    rows = map(log.entry, answers.EVENTS)
    return [block for row in rows for block in log.entry_lines(row, s, BERLIN, verbose=verbose)]


def _lines(verb: str) -> tuple[list[str], list[list[object]]]:
    head, *rows = map(json.loads, answers.ANSWERS[verb].splitlines())
    return head, rows


def _found() -> dict[str, list[dict[str, object]]]:
    kinds = {"definitions": "schema", "tables": "table"}
    found = {name: [row[kind] for row in answers.DIFFERENCE if kind in row and "change" not in row]
             for name, kind in kinds.items()}  # fmt: skip
    return {**found, "changes": [row for row in answers.DIFFERENCE if "change" in row]}


WITHOUT_KEY = answers.status((APP,), keys=(replace(MAIN, recovery=[], recovery_tested_at=None),))
UNREAD = answers.status(
    (),
    (replace(answers.LOCAL, stored_bytes=None),),
    (replace(MAIN, recovery=[], recovery_tested_at=None, known=False),),
)
LOST = replace(
    answers.LOCAL, ok=False, free_bytes=None, problem=KeyRefused("storage local: sealed with another key").problem()
)
FRESH = replace(CRM, name="fresh", attention=[], hints=[], backups=0, next_run_at="2026-09-12T23:00:00Z")

UNSURE = {"name": "content equals the snapshot", "outcome": "inconclusive", "detail": "postgres 15 is not here"}
LACKING = {
    "name": "owner and rights", "outcome": "failed", "detail": "owner app: Operation not permitted",
    "hints": ["chown app:app /var/lib/app/app_20260911T230000Z.db"],
}  # fmt: skip

CHANGES = [
    {"key": "database.crm", "old": None, "new": {"engine": "sqlite", "path": "/srv/crm.db", "run_as": None,
     "keep": {"last": 3, "daily": 7}, "queries": [], "storage": ["local"]}},
    {"key": "database.old", "old": {"engine": "sqlite", "path": "/srv/old.db"}, "new": None},
    {"key": "defaults.keep", "old": {"last": 3}, "new": {"last": 3, "daily": 7}},
]  # fmt: skip

COVERED = [
    {"since_at": "2026-09-11T00:02:19Z", "until_at": "2026-09-11T18:40:07Z"},
    {"since_at": "2026-09-11T18:52:30Z", "until_at": "2026-09-12T07:13:59Z"},
]
MOMENT = {**answers.RESULTS["restore"]["plan"], "created_at": "2026-09-12T06:14:07.250Z", "segments": 214}

COARSE = [
    {"since_at": since, "until_at": until, "grain_seconds": grain}
    for since, until, grain in (
        ("2026-08-01T00:02:19Z", "2026-08-14T00:00:00Z", 86_400),
        ("2026-08-20T00:02:19Z", "2026-09-04T00:00:00Z", 3_600),
        ("2026-09-04T00:00:00Z", "2026-09-10T00:00:00Z", 60),
        ("2026-09-10T00:00:00Z", "2026-09-12T07:13:59Z", 0),
    )
]
LOG_PROOF = {"proven_at": "2026-09-11T23:02:00Z", "moment_at": "2026-09-11T19:14:07.250Z"}
SCREENS: dict[str, Draw] = {
    "status": lambda s: status.status(answers.status(), s, NOW, BERLIN),
    "status-empty": lambda s: status.status(answers.status(()), s, NOW, BERLIN),
    "status-no-recovery": lambda s: status.status(WITHOUT_KEY, s, NOW, BERLIN),
    "status-unread": lambda s: status.status(UNREAD, s, NOW, BERLIN),
    "status-storage-lost": lambda s: status.status(answers.status((APP, FRESH), (LOST,)), s, NOW, BERLIN),
    "status-one": lambda s: status.database(answers.status()["databases"][0], s, NOW, BERLIN),
    "status-one-followed": lambda s: status.database(
        {**answers.status()["databases"][0], "continuous": True, "log_proof": LOG_PROOF}, s, NOW, BERLIN
    ),
    "status-one-to-be-followed": lambda s: status.database(
        {**answers.status()["databases"][0], "continuous": True, "backups": 0}, s, NOW, BERLIN
    ),
    "list-followed": lambda s: backups.backups(
        {**answers.listing(), "log": COVERED, "log_proof": LOG_PROOF}, NOW, BERLIN, why=False, everything=False
    ),
    "list-coarse": lambda s: backups.backups(
        {**answers.listing(), "log": COARSE}, NOW, BERLIN, why=False, everything=False
    ),
    "restore-plan-moment": lambda s: jobs.finished(
        answers.job("restore", request={"dry_run": True}, result={"plan": MOMENT}), NOW, BERLIN
    ),
    "list": lambda s: backups.backups(answers.listing(), NOW, BERLIN, why=False, everything=False),
    "list-why": lambda s: backups.backups(answers.listing(), NOW, BERLIN, why=True, everything=False),
    "list-all": lambda s: backups.backups(answers.listing(), NOW, BERLIN, why=False, everything=True),
    "recall": lambda s: backups.recalled(ROUTES[f"POST /backups/{answers.APP_5}/recall"]),
    "recall-kept": lambda s: backups.recalled({"backup": APP_1, "database": "app", "kept_because": ["last 1"]}),
    "show-backup": lambda s: backups.show(
        {"schema": "x", "kind": "backup", "backup": answers.listing()["backups"][3], "proofs": [{"grade": "checked"}]},
        BERLIN,
    ),
    "backup": lambda s: _job("backup"),
    "verify": lambda s: _job("verify"),
    "restore": lambda s: _job("restore"),
    "restore-lacking": lambda s: jobs.finished(
        answers.job("restore", result={**answers.RESULTS["restore"], "findings": [LACKING]}), NOW, BERLIN
    ),
    "restore-unsure": lambda s: jobs.finished(
        answers.job("restore", result={**answers.RESULTS["restore"], "findings": [UNSURE]}), NOW, BERLIN
    ),
    "restore-plan": lambda s: _job("restore", dry_run=True, at="2026-09-12T06:59:00Z", to="/tmp/it's.db"),
    "restore-plan-in-place": lambda s: jobs.finished(
        answers.job(
            "restore", request={"dry_run": True, "in_place": True}, result={"plan": answers.RESULTS["undo"]["plan"]}
        ),
        NOW,
        BERLIN,
    ),
    "undo": lambda s: _job("undo"),
    "check": lambda s: _job("check"),
    "prune-plan": lambda s: _job("expire", dry_run=True),
    "sweep": lambda s: _job("sweep", storage="local", database=None),
    "job-list": lambda s: jobs.jobs(
        {"jobs": [answers.job(), answers.job("verify", "failed", problem=NoSpace("app: full").problem())]}, NOW, BERLIN
    ),
    "job-show": lambda s: jobs.job(
        answers.job("verify", "failed", problem=NoSpace("app: full", detail="a\nb", hints=["x"]).problem()), NOW, BERLIN
    ),
    "events": lambda s: log.events(answers.EVENTS, NOW, BERLIN),
    "log": lambda s: _log(s, verbose=False),
    "log-verbose": lambda s: _log(s, verbose=True),
    "query": lambda s: [*questions.table(*_lines("query")), questions.cut_off(answers.RESULTS["query"])],
    "diff": lambda s: questions.difference(_found(), summary=False),
    "diff-summary": lambda s: questions.difference(_found(), summary=True),
    "schedule": lambda s: care.schedule(ROUTES["GET /schedule"], NOW, BERLIN),
    "audit": lambda s: care.audit(ROUTES["GET /audit"], NOW, BERLIN),
    "config-diff": lambda s: config.differing(ROUTES["GET /config/diff"], NOW, BERLIN),
    "config-diff-tables": lambda s: config.differing({"changes": CHANGES, "deletes": []}, NOW, BERLIN),
    "config-accept": lambda s: config.differing(ROUTES["GET /config/diff"], NOW, BERLIN, accepted=True),
    "config-check": lambda s: config.checked(
        {"ok": False, "files": ["a.toml"], "errors": [{"text": "error[config/bad-value]: no\n --> a.toml:9:1\n9 | y"}]}
    ),
    "config-show": lambda s: config.shown(ROUTES["GET /config"]({"origin": "true"}, None)),
    "unprotect": lambda s: unprotected(
        {"database": "app", "path": "/srv/an app.db", "backups": 2, "removed": "/etc/dbguard/conf.d/app.toml"}
    ),
    "unprotect-plan": lambda s: unprotected({"database": "app", "path": "/x", "backups": 1, "would_remove": "/x.toml"}),
    "protect": lambda s: [
        *protected({"database": "app", "found": "SQLite", "wrote": "/x.toml", "text": "[database.app]\n"}, whole=True),
        *promise(WITHOUT_KEY, "app", NOW, BERLIN),
    ],
    "error": lambda s: error_blocks(
        NoSpace(
            "cache: the storage is full",
            detail="Storage local has 1.2 GiB free, this backup needs 2.1 GiB.",
            hints=["dbguardctl prune --dry-run"],
            facts={"last_proven_at": "2026-09-11T23:00:00Z"},
        ),
        NOW, BERLIN, verbose=False,
    ),
    "error-without-hint": lambda s: error_blocks(
        PolicyInvalid("policy: 1 error", detail="error: x\n --> a.toml:9:1\n  |\n9 | y"), NOW, BERLIN, verbose=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCREENS)
def test_plain(name: str) -> None:
    on = screen()
    approve(name, drawn(SCREENS[name](on), on))


@pytest.mark.parametrize("name", ["status", "list-why", "log"])
def test_ascii(name: str) -> None:
    on = screen(utf8=False)
    shown = drawn(SCREENS[name](on), on)
    assert shown.isascii()
    approve(f"{name}.ascii", shown)


@pytest.mark.parametrize("name", ["status", "list-why", "error", "log"])
def test_terminal(name: str) -> None:
    on = screen(terminal=True, colour=True)
    approve(f"{name}.terminal", drawn(SCREENS[name](on), on))


def test_a_terminal_without_colours_gets_no_escape_sequence() -> None:
    on = screen(terminal=True, colour=False)
    assert "\x1b" not in drawn(SCREENS["list-why"](on), on)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", SCREENS)
def test_nothing_that_is_shown_can_command_the_terminal(name: str, terminal: bool) -> None:
    on = screen(terminal=terminal)
    assert all(char.isprintable() or char == "\n" for char in drawn(SCREENS[name](on), on))


def test_hostile_cells_are_escaped_also_where_rich_folds() -> None:
    on = screen(terminal=True)
    shown = drawn([Table(("A",), [("\x1b[31m[red]" + "x" * 90,)]), text("a\nb\u202e")], on)
    assert "\x1b" not in shown and "\\x1b[31m[red]" in shown
    assert "a\\nb\\u202e" in shown


def test_columns_stay_in_line_with_wide_characters() -> None:
    lines = drawn([Table(("NAME", "N"), [("世界", Cell("1")), ("Grüße", "22")], right=frozenset((1,)))]).splitlines()
    assert lines == ["NAME    N", "世界    1", "Grüße  22"]


@pytest.mark.parametrize(
    ("environ", "coerced", "utf8"),
    [
        ({"LANG": "de_DE.UTF-8"}, False, True), ({"LANG": "C.UTF-8"}, False, True), ({}, True, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True, False), ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, True, False),
        ({"LANG": "en_US.utf8"}, False, True), ({"LC_CTYPE": "C.UTF-8"}, False, True),
    ],
)  # fmt: skip
def test_utf8_is_what_the_locale_says(environ: dict[str, str], coerced: bool, utf8: bool) -> None:
    assert speaks_utf8(environ, coerced) is utf8


@pytest.mark.parametrize(
    ("answer", "needs"),
    [
        (answers.status((APP,)), False), (answers.status(()), False), (answers.status((APP, CRM)), True),
        (answers.status((answers.QUIET,)), False), (WITHOUT_KEY, True), (answers.status((APP,), (LOST,)), True),
        (answers.status((APP,), attention=["the clock is in doubt"]), True),
        (answers.status((APP,), policy_problem=PolicyInvalid("policy: no").problem()), True),
        (answers.status((replace(APP, state=Health.LATE),)), True),
    ],
)  # fmt: skip
def test_what_needs_attention(answer: dict[str, object], needs: bool) -> None:
    assert status.needs_attention(answer) is needs


def test_the_worst_comes_first() -> None:
    on = screen()
    shown = drawn(status.status(answers.status(), on, NOW, BERLIN), on)
    assert [shown.index(name) for name in ("cache", "crm", "quiet")] == sorted(
        shown.index(name) for name in ("cache", "crm", "quiet")
    )


def test_a_member_that_an_older_client_does_not_know_is_no_trouble() -> None:
    answer = answers.status()
    answer["databases"][0]["new_member"] = {"deep": [1]}
    answer["new"] = 1
    on = screen()
    assert drawn(status.status(answer, on, NOW, BERLIN), on)


def test_two_backups_in_a_minute_do_not_look_alike() -> None:
    rows = [{**row, "created_at": f"2026-09-11T23:00:{number:02}Z"} for number, row in
            enumerate(answers.listing()["backups"][:2])]  # fmt: skip
    on = screen()
    shown = drawn(backups.backups({"backups": rows}, NOW, BERLIN, why=False, everything=False), on)
    assert "today 01:00:00" in shown and "today 01:00:01" in shown


def test_storage_without_numbers() -> None:
    bare = StorageStatus("nas", "x", True, None, None, None, None, None)
    on = screen()
    assert "nas: x, not read yet" in drawn(status.status(answers.status((APP,), (bare,)), on, NOW, BERLIN), on)
