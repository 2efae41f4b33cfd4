"""log and events: the newest of a history, as far back as it was asked for, and on as things happen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.surface import answers
from tests.surface.conftest import environment
from tests.surface.fake import FakeDaemon


@pytest.mark.parametrize("words", [["events", "--after", "40"], ["-v", "log"]], ids=" ".join)
def test_what_happens_is_followed_across_a_broken_connection(words: list[str], daemon: FakeDaemon) -> None:
    daemon.routes["GET /events"] = lambda query, body: answers.events(query, answers.EVENTS[:1])
    command = [sys.executable, "-m", "dbguardctl", "--json", *words, "--follow"]
    with subprocess.Popen(command, env=environment(daemon.socket), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            seen = [json.loads(child.stdout.readline())["id"] for _ in answers.EVENTS]
            child.send_signal(signal.SIGINT)
            assert child.wait(120) == 130
        finally:
            child.kill()
    assert seen == [41, 42, 43, 44, 45]


def many(count: int) -> Callable[[dict[str, str], object], dict[str, object]]:
    """A history of so many events."""
    rows = [{**answers.EVENTS[1], "id": id} for id in range(1, count + 1)]
    return lambda query, _body: answers.events(query, rows)


def test_events_are_the_newest(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.routes["GET /events"] = many(12_000)
    assert inside("--json", "events", "--limit", "3") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["events"]] == [11_998, 11_999, 12_000]
    assert inside("--json", "events", "--after", "7", "--limit", "2") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["events"]] == [8, 9]


def entries(inside: Callable[..., int], capsys: pytest.CaptureFixture[str], *words: str) -> list[int]:
    assert inside("--json", "log", *words) == 0
    return [entry["id"] for entry in json.loads(capsys.readouterr().out)["entries"]]


def test_the_log_tells_what_was_asked_for(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entries(inside, capsys) == [42, 43, 44, 45]
    assert entries(inside, capsys, "-v") == [41, 42, 43, 44, 45]
    assert entries(inside, capsys, "crm") == [44, 45]
    assert entries(inside, capsys, "--errors") == [43, 44, 45]
    assert entries(inside, capsys, "-n", "2") == [44, 45]
    assert entries(inside, capsys, "--since", "2026-09-12 09:14:01") == [43, 44, 45]
    assert entries(inside, capsys, "--since", "2026-09-12 09:14:01", "--until", "2026-09-12 09:14:05") == [43]
    assert entries(inside, capsys, "app", "--errors") == []
    assert inside("log", "app", "--errors") == 0
    assert capsys.readouterr().out == "Nothing to show for app.\n"


def test_the_log_reads_as_far_back_as_it_must(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.routes["GET /events"] = many(4_500)
    assert entries(inside, capsys) == list(range(4_451, 4_501))
    assert entries(inside, capsys, "-n", "4100") == list(range(401, 4_501))
    assert entries(inside, capsys, "--since", "2026-01-01 00:00") == list(range(1, 4_501))
    assert entries(inside, capsys, "--errors") == []


def test_the_log_of_a_database_that_is_not(
    inside: Callable[..., int], daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("log", "crn") == 8
    assert "Did you mean crm?" in capsys.readouterr().err
    assert inside("log", "quiet") == 0  # it is in the policy, and nothing has happened to it
    daemon.routes["GET /events"] = lambda query, body: answers.events(query, [{**answers.EVENTS[1], "database": "old"}])
    assert inside("log", "old") == 0  # it was in the policy once
    assert inside("log", "--follow", "--until", "now") == 2
