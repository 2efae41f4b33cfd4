"""Every event reads as one sentence, whatever its facts are; the journal's catalog is made from the tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardd.daemon.log import fields
from dbguardd.errors import OUTCOMES, message_id
from dbguardd.events import EVENTS, KINDS, LEVELS, kind_of, level_of
from dbguardd.humanize import safe
from dbguardd.sentences import plain, sentence
from tests.surface import catalog_file
from tests.surface.golden import approve
from tests.surface.happened import HAPPENED, of

CATALOG = Path(__file__).parents[2] / "systemd" / "dbguard.catalog"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=6,
)
LINED = ("MESSAGE", "DBGUARD_DETAIL", "DBGUARD_HINT")
FACTS = ("id", "backup", "verb", "action", "problem", "code", "detail", "reason", "reasons", "seconds", "stored_bytes",
         "grade", "failure", "findings", "outcome", "name", "target", "storage", "database", "until_at", "hints",
         "objects", "tables", "key", "recipients", "actor", "job")  # fmt: skip


def test_every_sentence_reads_as_designed() -> None:
    approve("sentences", "".join(f"{level_of(plain(facts)):<7} {sentence(facts)}\n" for facts in HAPPENED))


def test_every_row_of_the_table_was_met() -> None:
    met = {kind_of(plain(facts)) and id(kind_of(plain(facts))) for facts in HAPPENED}
    assert [kind.name for kind in KINDS if id(kind) not in met] == []


def test_what_is_known_is_all_said() -> None:
    """A fact that the sentence of a row needs is in the event: nothing reads as unknown."""
    assert [sentence(facts) for facts in HAPPENED if "unknown" in sentence(facts)] == []


@given(st.sampled_from(sorted(EVENTS)) | st.text(max_size=20), st.dictionaries(st.sampled_from(FACTS), JSON))
def test_no_fact_can_break_a_sentence_or_make_a_line(event: str, facts: dict[str, Any]) -> None:
    line = sentence({"event": event, **facts})
    assert safe(line) == line
    for name, value in fields({"event": event, **facts}).items():
        assert safe(value, keep="\n" if name in LINED else "") == value


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[2J", "\u202eevil", "{backup}", "[x]", "@DBGUARD_JOB@", "\u2028"])
def test_a_fact_is_never_read_as_part_of_the_template(hostile: str) -> None:
    line = sentence(of("backup.held", hostile, id="01J", reason=hostile, actor=hostile))
    shown = safe(hostile)
    assert line == f"{shown}: backup 01J is held by {shown}: {shown}"


def test_a_very_long_fact_is_cut() -> None:
    assert len(sentence(of("backup.held", id="01J", reason="x" * 100_000))) < 1000


def test_an_event_that_the_table_does_not_know_is_still_told() -> None:
    assert sentence(of("new.thing", rows=3, where="there")) == "app: new.thing: rows 3, where there"
    assert sentence({}) == ""


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_is_right() -> None:
    for name, rows in EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", name)
        assert len([row for row in rows if row.summary]) == 1, name
        assert [bool(row.when) for row in rows] == [True] * (len(rows) - 1) + [False], name
        assert len({row.variant for row in rows}) == len(rows), name
    for kind in KINDS:
        assert kind.level in LEVELS, kind.name
        assert bool(kind.when) == bool(kind.variant), kind.name
        assert bool(kind.title) == bool(kind.meaning) == bool(kind.advice), kind.name
        assert not kind.title.endswith(".") and "!" not in kind.meaning
        assert not kind.meaning or kind.meaning.endswith("."), kind.name


def test_what_a_person_should_act_on_is_explained() -> None:
    """By the entry of its error if it has one, else by its own."""
    for kind in KINDS:
        if kind.level == "error" and "{code}" not in kind.sentence:
            assert kind.title, kind.name


# ------------------------------------------------------------------------------------------------ the catalog


def entries() -> dict[str, str]:
    """The entries of the catalog, by id."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_catalog_is_made_from_the_tables() -> None:
    assert CATALOG.read_text(encoding="utf-8") == catalog_file.catalog(), (
        "make it anew: python -m tests.surface.catalog_file > systemd/dbguard.catalog"
    )


def test_every_error_has_an_entry_and_no_id_is_used_twice() -> None:
    found = entries()
    ids = [*(message_id(code) for code in OUTCOMES), *(kind.message_id for kind in KINDS)]
    assert len(ids) == len(set(ids))
    assert found.keys() == {message_id(code) for code in OUTCOMES} | {kind.message_id for kind in KINDS if kind.title}
    assert found.keys() == set(re.findall(r"^-- (.*)$", CATALOG.read_text(encoding="utf-8"), re.M))
    for code, kind in OUTCOMES.items():
        entry = " ".join(found[message_id(code)].split())
        assert f"Subject: {kind.title} ({code})" in entry
        assert kind.meaning in entry


def test_ids_are_for_ever() -> None:
    """People filter by them and others translate them: an id changes only when what it stands for is another thing."""
    assert message_id("DBG-3002") == "163ed70503dd5009906eeb6827284345"
    assert message_id("DBG-6001") == "ec8e628349415f7293d7353fbe3ceb36"
    proven, inconclusive, failed = EVENTS["backup.graded"]
    assert proven.message_id == "8dd5902a4c3355968b74445e97292c3c"
    assert inconclusive.message_id == "c35a3b43513c5cea9984cbfeb2306b3a"
    assert failed.message_id == "388931eff48b5a5c85468a665602e553"


def test_journalctl_can_fill_in_every_name() -> None:
    """What an entry names is a field of the events that it explains, and short enough to be filled in."""
    found, explained = entries(), set()
    for facts in HAPPENED:
        sent = fields({"level": "info", **facts, "last_proven": "none"} if facts["database"] else facts)
        entry = found.get(sent["MESSAGE_ID"], "")
        named = set(re.findall(r"@(\w+)@", entry))
        if "DBGUARD_CODE" not in sent or facts["database"]:
            assert {name for name in named if len(sent.get(name, "")) not in range(1, 240)} == set(), facts
        explained.add(sent["MESSAGE_ID"])
    assert {kind.message_id for kind in KINDS if kind.title} <= explained


def test_lines_are_short_enough_to_read() -> None:
    assert max(map(len, CATALOG.read_text(encoding="utf-8").splitlines())) <= 110
