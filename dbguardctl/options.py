"""Makes command line options from the request dataclasses, and completes names and ids."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import click

from dbguardctl.session import Session
from dbguardd.errors import GuardError, Usage

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from dbguardd.requests import Request

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Given(click.ParamType[str]):
    """A text that is not empty: an option that a script fills from an empty variable must not count as absent."""

    name = "text"

    def __init__(self, *, empty: bool = False) -> None:
        self._empty = empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (value or self._empty):
            self.fail("it is empty; leave the option out if that is meant", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete paths; nothing is known about other texts."""
        return [_item(incomplete, "", "file")] if param.metavar in ("PATH", "FILE") else []


def from_root(path: str) -> str:
    """Return an absolute path in the form that the daemon accepts. Raises Usage."""
    try:
        whole = os.path.abspath(path)
    except FileNotFoundError as error:
        raise Usage(f"{path}: the directory that you are in is gone", detail="Write the path from / on.") from error
    link = "ln -s FILE LINK  # a link with another name is read like the file"
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise Usage(f"{path}: its name is not UTF-8, and cannot stand in a policy", hints=[link]) from error
    if any(unicodedata.category(char) == "Cc" for char in whole):
        raise Usage(f"{path!r}: its name has control characters, and cannot be asked for", hints=[link])
    return whole


def text_option(*names: str, **settings: Any) -> Decorator:
    """Return an option that takes a text; a command sees "" if it is absent."""
    settings = {"type": Given(), "callback": lambda _ctx, _param, value: value or "", **settings}
    return click.option(*names, **settings)


def _joined(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> str:
    """Return the values of an option that was given several times as one list; click would keep only the last."""
    return ",".join(values)


def request_options(
    request: type[Request], *, skip: Collection[str] = (), rename: Mapping[str, str] | None = None
) -> Decorator:
    """Add an option for every field of a request that has a default; `rename` gives a field another option name."""
    rename = rename or {}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(fields(request)):
            if field.default is MISSING or field.name in skip:
                continue
            name = rename.get(field.name, field.name).replace("_", "-")
            text = str(field.metadata["help"])
            help = f"{text[:1].upper()}{text[1:]}."
            if type(field.default) is int:
                option: Decorator = click.option(
                    f"--{name}", field.name, metavar="COUNT", type=click.IntRange(1), default=field.default,
                    show_default=True, help=help,
                )  # fmt: skip
            elif isinstance(field.default, bool):
                option = click.option(f"--{name}", field.name, is_flag=True, default=False, help=help)
            else:
                metavar = {
                    "at": "TIME",
                    "backup": "ID",
                    "confirm": "NAME",
                    "lsn": "LSN",
                    "to": "PATH",
                    "in_database": "DB",
                    "name": "POINT",
                    "tablespace": "OLD=NEW",
                }.get(field.name, "TEXT")
                complete = complete_id if field.name == "backup" else None
                kind = Given(empty=field.name == "note")  # an empty note is allowed
                several: dict[str, Any] = {"multiple": True, "callback": _joined} if field.metadata["several"] else {}
                option = text_option(
                    f"--{name}", field.name, metavar=metavar, help=help, shell_complete=complete, type=kind, **several
                )
            function = option(function)
        return function

    return decorate


def wait_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how long to wait for a job."""
    function = text_option(
        "--timeout", metavar="SPAN", help="Stop waiting after this time (90s, 2h); the job goes on."
    )(function)
    return click.option("--no-wait", is_flag=True, help="Print the id of the job and do not wait for it.")(function)


def _ask(ctx: click.Context, *parts: str, **query: Any) -> dict[str, Any]:
    """Ask the daemon during shell completion; without a daemon there are no suggestions."""
    session = ctx.find_root().obj or Session()
    session.socket = session.socket or str(ctx.find_root().params.get("socket") or "")
    try:
        return dict(session.daemon.get(*parts, **query))
    except GuardError:
        return {}


def _item(value: str, help: str, type: str = "plain") -> CompletionItem:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - takes 4 ms and only completion needs it

    return CompletionItem(value, type, help)


def complete_database(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Suggest the names of databases."""
    rows = _ask(ctx, "status").get("databases", [])
    return [_item(row["name"], row["engine"]) for row in rows if row["name"].startswith(incomplete)]


def complete_id(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Suggest the ids of backups: of the database that was typed, else of all."""
    named = ctx.params.get("database") or next(iter(ctx.args), None)  # click puts words before an open option there
    names = [named] if named else [row["name"] for row in _ask(ctx, "status").get("databases", [])]
    found = []
    for name in names:
        for row in _ask(ctx, "databases", name, "backups").get("backups", []):
            if row["id"].startswith(incomplete.upper()):
                found.append(_item(row["id"], f"{row['database']} {row['created_at']} {row['grade']}"))
    return found


def complete_expired(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Suggest the ids of backups that can be recalled."""
    return [
        _item(row["backup"]["id"], f"{row['backup']['database']} {row['backup']['created_at']} expired")
        for database in _ask(ctx, "status").get("databases", [])
        for row in _ask(ctx, "databases", database["name"], "backups").get("expired", [])
        if row["backup"]["id"].startswith(incomplete.upper())
    ]


def complete_database_or_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Suggest names of databases, and ids of backups once something is typed."""
    names = complete_database(ctx, param, incomplete)
    return names if names or not incomplete else complete_id(ctx, param, incomplete)


def complete_job(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Suggest the ids of jobs."""
    rows = _ask(ctx, "jobs", limit=50).get("jobs", [])
    return [
        _item(row["id"], f"{row['verb']} {row['database'] or ''} {row['state']}")
        for row in rows
        if row["id"].startswith(incomplete.upper())
    ]


class Name(click.ParamType[str]):
    """A name or an id: short, printable and without slashes, because it becomes part of an API path."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text or len(text) > 200 or "/" in text or not text.isprintable():
            self.fail(f"{text[:60]!r} is not a name", param, ctx)
        return text


def database_argument(*, required: bool = True) -> Decorator:
    """Add the argument NAME of a database."""
    return click.argument("database", metavar="NAME" if required else "[NAME]", type=Name(), required=required,
                          shell_complete=complete_database)  # fmt: skip


def id_argument(metavar: str = "ID", complete: Callable[..., Any] = complete_id) -> Decorator:
    """Add the argument ID of a backup, or of another object that `complete` suggests."""
    return click.argument("id", metavar=metavar, type=Name(), shell_complete=complete)
