"""The manual pages say what the programs do, no less and no more."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbguardctl.__main__ import main
from dbguardd.__main__ import _parser
from dbguardd.errors import OUTCOMES
from dbguardd.events import EVENTS
from dbguardd.verbs import BY_HAND
from tests.docs import decisions, events
from tests.docs.pages import PAGES, ROOT, items, plain, roff, section
from tests.docs.source import reported

OURS = {page.name.rpartition(".")[0]: page.suffix[1:] for page in PAGES}


def test_the_pages_are_there() -> None:
    assert {"dbguardctl.1", "dbguardd.8", "dbguard.toml.5", "dbguard-errors.7"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_clean(page: Path, program: Callable[[str], str]) -> None:
    done = subprocess.run([program("mandoc"), "-Tlint", page], capture_output=True, text=True, check=False)
    # Pages of others need not be installed, and ours are not yet: the next test looks for those.
    told = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert told == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_refers_to_pages_of_ours_that_exist(page: Path) -> None:
    for name, number in re.findall(r"^\.Xr (dbguard\S*) (\d)", page.read_text(encoding="utf-8"), re.M):
        assert OURS.get(name) == number, f"{name}({number})"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_name_of_a_page_is_its_title(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    name, _, number = page.name.rpartition(".")
    assert re.search(rf"^\.Dt {re.escape(name.upper())} {number}$", text, re.M)
    assert f".Nm {name}\n" in text


# ------------------------------------------------------------------------------------------------ dbguardd


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def test_every_option_of_dbguardd_is_in_its_page_and_no_other() -> None:
    page = roff("dbguardd.8")
    written = {f"-{name}" for name in re.findall(r"Fl (-?[a-z][a-z-]*)", page)}
    top, run = list(parsers(_parser()))[:2]
    assert options(top) | options(run) == written
    # What stands in the synopsis is described, and the other way round.
    described = set(re.findall(r"^\.It Fl (-[a-z-]+)", page, re.M)) - {"-version", "-help"}
    assert described - {"-json"} == set(re.findall(r"Fl (-[a-z-]+)", section(page, "SYNOPSIS"))) - {"-json"}


def test_the_verbs_of_dbguardd_run_are_in_its_page() -> None:
    text = section(roff("dbguardd.8"), "Running one job by hand", "Ss")
    named = set(re.findall(r"^\.Cm (.*)", text, re.M))
    verbs = {word for line in named for word in re.findall(r"[a-z]+", line)}
    assert verbs == set(BY_HAND)


def test_what_help_says_of_defaults_is_in_the_page() -> None:
    page = roff("dbguardd.8")
    for action in _parser()._actions:
        if isinstance(action.default, Path):
            assert re.search(rf"^\.P[qa] (Pa )?{re.escape(str(action.default))}\b", page, re.M), action.option_strings


# ------------------------------------------------------------------------------------------------ events, errors


@pytest.mark.parametrize(("way", "number"), [("kept", 0), ("logged", 1), ("audited", 2)])
def test_every_event_is_in_the_page_and_no_other(way: str, number: int) -> None:
    lists = section(roff("dbguardd.8"), "EVENTS").split(".Bl -tag")[1:]
    written = items(lists[number])
    assert set(written) == reported()[way]
    assert all(text.endswith(".") and len(text) < 100 for text in written.values())


def test_the_events_of_the_page_are_those_of_the_table() -> None:
    assert events.PAGE.read_text(encoding="utf-8") == events.page(), "make it anew: python -m tests.docs.events"
    told = reported()
    assert told["kept"] | told["logged"] == set(EVENTS)


def test_events_that_change_the_catalog_are_known() -> None:
    from dbguardd.catalog.effects import EFFECTS

    assert set(EFFECTS) <= reported()["kept"]


def rendered(page: str) -> str:
    """A page as words without layout."""
    return " ".join(re.sub(r"^\.\w+ ?", "", plain(page), flags=re.M).split())


@pytest.mark.parametrize("code", OUTCOMES)
def test_explain_says_what_the_page_says(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == 0
    words, kind = " ".join(capsys.readouterr().out.split()), OUTCOMES[code]
    page = rendered(roff("dbguard-errors.7"))
    for text in (kind.title, kind.meaning, kind.advice):
        assert plain(text) in page
        assert " ".join(text.split()) in words
    assert f"Exit status {kind.exit_status}" in words


def test_a_reader_of_the_page_of_errors_sees_whole_titles(program) -> None:
    argv = [program("mandoc"), "-Tutf8", "-Owidth=200", ROOT / "man" / "dbguard-errors.7"]
    shown = re.sub(r".\x08", "", subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    lines = [line.strip() for line in shown.splitlines()]
    assert not [kind.title for kind in OUTCOMES.values() if f"{kind.code} {kind.title}" not in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_word_of_a_title_is_taken_for_a_macro(page: Path) -> None:
    words = r"^\.(?:It|Ss|Sh|Nd) .*(?<!\\&)\b(?:No|An|At|In|So|Do) [a-z]"
    assert not re.findall(words, page.read_text(encoding="utf-8"), re.M)


def test_the_page_of_errors_has_no_code_that_is_not() -> None:
    assert set(re.findall(r"DBG-\d{4}", roff("dbguard-errors.7"))) == set(OUTCOMES)


def test_codes_that_documents_name_exist() -> None:
    for path in [*PAGES, ROOT / "README.md", *(ROOT / "etc").rglob("*.toml"), *(ROOT / "man/decisions").glob("*.md")]:
        assert set(re.findall(r"DBG-\d{4}", path.read_text(encoding="utf-8"))) <= set(OUTCOMES), path


def test_the_list_of_decisions_is_that_of_the_files() -> None:
    assert decisions.PAGE.read_text(encoding="utf-8") == decisions.page(), (
        "make it anew: python -m tests.docs.decisions"
    )


def test_decisions_that_the_source_names_exist() -> None:
    numbers = {path.name[:4] for path in (ROOT / "man" / "decisions").iterdir()}
    for path in [*(ROOT / "dbguardd").rglob("*.py"), *(ROOT / "dbguardctl").rglob("*.py"), *PAGES]:
        named = re.findall(r"\bdecisions?[ /](\d{4})\b", path.read_text(encoding="utf-8"))
        assert set(named) <= numbers, path
