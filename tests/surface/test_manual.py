"""Help, manual pages, hints and the program say the same, and the program loads no more than it may."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from dbguardctl.app import SECTIONS, Command, app, global_options
from dbguardctl.examples import EXAMPLES
from dbguardd.errors import EXIT_STATUSES, OUTCOMES
from dbguardd.requests import REQUESTS
from tests.surface import errors_page
from tests.surface.conftest import environment
from tests.surface.fake import FakeDaemon

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "man" / name for name in ("dbguardctl.1", "dbguard-errors.7", "dbguardd.8")]
GLOBAL = {name for option in global_options() for name in option.opts}


def tree(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            yield from tree(inner, *words, name)


EVERY = dict(tree(app))


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    from dbguardctl.__main__ import main

    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: dbguardctl")
    assert max(map(len, shown.splitlines())) <= 110
    assert len(shown.splitlines()) >= 4
    for param in EVERY[words].params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.help and param.help[0].isupper() and param.help.endswith("."), param.name


def test_every_command_takes_the_global_options() -> None:
    for words, command in EVERY.items():
        if isinstance(command, Command):
            assert {name for param in command.params for name in param.opts} >= GLOBAL, words


@pytest.mark.parametrize("verb", REQUESTS)
def test_options_of_jobs_come_from_the_requests(verb: str) -> None:
    from dataclasses import fields

    names = {"expire": "prune", "sweep": "prune"}
    command = EVERY[names.get(verb, verb),]
    known = {param.name for param in command.params} | {"words", "what"}
    if verb != "verify":
        assert {field.name for field in fields(REQUESTS[verb])} - {"database", "storage"} <= known


def roff(path: Path) -> str:
    """A manual page as text, its options as they are typed."""
    return path.read_text(encoding="utf-8").replace("\\&", "")


@pytest.mark.parametrize("words", [words for words in EVERY if words], ids=" ".join)
def test_every_command_and_option_is_in_the_manual(words: tuple[str, ...]) -> None:
    manual = roff(PAGES[0])
    command = EVERY[words]
    if isinstance(command, click.Group):
        return
    assert re.search(rf"^\.It Cm {' '.join(words)}\b", manual, re.M)
    for param in command.params:
        if isinstance(param, click.Option):
            for name in param.opts:
                assert re.search(rf"Fl {re.escape(name[1:])}\b", manual), name


def test_nothing_is_in_the_manual_that_is_not() -> None:
    known = {name for command in EVERY.values() for param in command.params for name in param.opts}
    for name in re.findall(r"Fl (-?[a-z][a-z-]*)", roff(PAGES[0])):
        assert f"-{name}" in known | {"-h", "--help"}, name
    for words in re.findall(r"^\.It Cm ([a-z-]+(?: [a-z-]+)*)", roff(PAGES[0]), re.M):
        found = tuple(words.split())
        assert found in EVERY or found[0] in ("always", "completion", "restore"), words


def test_exit_statuses_are_in_the_manual() -> None:
    section = roff(PAGES[0]).partition(".Sh EXIT STATUS")[2].partition(".Sh")[0]
    rows = dict(re.findall(r"\.It (\d+)\n((?:[^.\n].*\n)+)", section))
    said = {int(status): " ".join(text.split()) for status, text in rows.items()}
    assert said == {status: f"{text[0].upper()}{text[1:]}." for status, text in EXIT_STATUSES.items()}


def test_the_page_of_the_errors_is_made_from_their_table() -> None:
    assert PAGES[1].read_text(encoding="utf-8") == errors_page.page(), (
        "make it anew: python -m tests.surface.errors_page > man/dbguard-errors.7"
    )
    assert all(code in errors_page.page() for code in OUTCOMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manuals_are_right(page: Path, program: Callable[[str], str]) -> None:
    done = subprocess.run([program("mandoc"), "-Tlint", page], capture_output=True, text=True, check=False)
    # Whether the pages that a page refers to are installed here says nothing about the page.
    wrong = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert wrong == []


# ------------------------------------------------------------------------------------------------ what can be pasted


def parse(line: str) -> None:
    """Read a command line as dbguardctl would, without doing anything. Raises click.UsageError or GuardError."""
    words = shlex.split(line, comments=True)[1:]  # as a shell reads it
    context = app.make_context("dbguardctl", words)
    command: click.Command = app
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, list(rest), parent=context)


def examples() -> list[str]:
    found: list[str] = []
    for page in sorted((ROOT / "man").glob("dbguard*.[1-8]")):
        blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", roff(page), re.M | re.S)
        lines = [line.strip() for block in blocks for line in block.splitlines() if "-->" not in line]  # no drawings
        found += [line for line in lines if line.startswith("dbguardctl ")]
    return found


def test_there_are_examples() -> None:
    assert len(examples()) >= 10


@pytest.mark.parametrize("line", examples())
def test_examples_of_the_manual_can_be_typed(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_help_can_be_typed(name: str) -> None:
    assert tuple(name.split()) in EVERY
    for line in EXAMPLES[name]:
        assert line.startswith(f"dbguardctl {name.partition(' ')[0]}") or "--json" in line
        parse(re.split(r" [|>] ", line)[0])


def test_the_help_of_every_daily_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from dbguardctl.__main__ import main

    for name in SECTIONS["Every day"]:
        main([name, "--help"])
        assert f"Examples:\n  {EXAMPLES[name][0]}\n" in capsys.readouterr().out


@pytest.mark.parametrize("group", [words for words, command in EVERY.items() if isinstance(command, click.Group)])
def test_the_list_of_commands_cuts_no_sentence(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    from dbguardctl.__main__ import main

    main([*group, "--help"])
    assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


def hints() -> list[str]:
    """Every command of ours that the client's own source tells people to type, with names for what is filled in."""
    found: set[str] = set()
    for path in sorted((ROOT / "dbguardctl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.match(r"dbguardctl [a-z]+[^:{]*$", text) and "COMMAND" not in text and not text.endswith((" ", "'")):
                found.add(text.partition(" < ")[0])
    for kind in OUTCOMES.values():
        for text in re.findall(r"dbguardctl [a-z]+(?: [a-z-]+| --[a-z-]+| [A-Z]+)*", kind.advice):
            found.add(text.partition(" or ")[0])
    return sorted(found)


@pytest.mark.parametrize("line", hints())
def test_what_messages_tell_people_to_type_exists(line: str) -> None:
    words = line.split()[1:]
    command: click.Command = app
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, line
        command = found
    known = {name for param in command.params for name in param.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known, line


def orders() -> list[str]:
    """Every `hints` of an error in the source that is a command of ours, NAME standing for what is filled in."""
    found: set[str] = set()
    for path in sorted((ROOT / "dbguardd").rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for word in (word for call in calls for word in call.keywords if word.arg == "hints"):
            for node in word.value.elts if isinstance(word.value, ast.List | ast.Tuple) else []:
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "NAME" for part in parts)
                if text.startswith("dbguardctl "):
                    found.add(text)
    return sorted(found)


def test_there_are_orders() -> None:
    assert len(orders()) >= 10


@pytest.mark.parametrize("line", orders())
def test_what_errors_tell_people_to_do_can_be_typed(line: str) -> None:
    parse(line)


# ------------------------------------------------------------------------------------------------ what is loaded

FORBIDDEN = (
    "ssl",
    *("pydantic", "aiohttp", "structlog", "sqlite3", "cryptography", "zstandard", "blake3", "asyncio", "pyrage"),
    *("dbguardd.api", "dbguardd.daemon", "dbguardd.jobs", "dbguardd.policy", "dbguardd.repository", "dbguardd.worker"),
    *("dbguardd.engines", "dbguardd.storage", "dbguardd.keys", "dbguardd.catalog", "dbguardd.rules", "dbguardd.flow"),
)


@pytest.mark.parametrize("words", [["--json", "status"], ["status"], ["list", "app"], ["backup", "app"], ["--help"]])
def test_the_client_loads_little(words: list[str], daemon: FakeDaemon) -> None:
    script = (
        f"import sys; from dbguardctl.__main__ import main; main({words!r}); "
        "print(' '.join(sorted(sys.modules)), file=sys.stderr)"
    )
    env = environment(daemon.socket)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    loaded = done.stderr.splitlines()[-1].split()
    assert not [name for name in loaded if name.startswith(FORBIDDEN)]
    assert "rich" not in loaded
    ours = {name for name in loaded if name.startswith("dbguardd")}
    assert {name.removeprefix("dbguardd.") for name in ours} <= {"dbguardd", *LOADED}
    assert "status" not in words or "dbguardd.requests" not in ours, "its records cost more than all that status does"


LOADED = {"errors", "frozen", "humanize", "lean", "places", "requests", "states", "ulids"}
SHARED = LOADED | {"events", "kinds", "sentences"}


def test_the_source_imports_only_what_it_may() -> None:
    for path in sorted((ROOT / "dbguardctl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                root = name.partition(".")[0]
                assert root in sys.stdlib_module_names or root in ("click", "rich", "dbguardctl", "dbguardd"), path
                if root == "dbguardd":
                    assert name.removeprefix("dbguardd.") in {"dbguardd", *SHARED}, path


def test_every_command_is_in_one_section() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) == len(app.list_commands(click.Context(app)))
