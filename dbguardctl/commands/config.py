"""config: look at the policy, check it, see what a change would do, accept it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click

from dbguardctl.app import Group, pass_session
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardctl.views import config as view
from dbguardd.errors import DaemonUnreachable


@contextmanager
def _or_without(way: str) -> Iterator[None]:
    """If there is no daemon, name the command that needs none."""
    try:
        yield
    except DaemonUnreachable as error:
        error.hints = (way, *error.hints)
        raise


@click.group(cls=Group)
def config() -> None:
    """Look at the policy, check it, and see what a change would do."""


@config.command("check")
@pass_session
def config_check(session: Session) -> int:
    """Check the policy files: all mistakes at once, each with its place. The running policy stays."""
    with _or_without("dbguardd --check-config"):
        answer = session.daemon.post("config", "check")
    ok = bool(answer.get("ok", not answer.get("errors")))
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.checked(answer))
    return 9 if not ok else 3 if answer.get("warnings") else 0


@config.command("show")
@click.option("--origin", is_flag=True, help="Show where each value comes from: default, class, or file and line.")
@pass_session
def config_show(session: Session, origin: bool) -> None:
    """Show the policy in force, with every default."""
    answer = session.daemon.get("config", origin=origin or None)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.shown(answer))


@config.command("explain")
@click.argument("key", metavar="KEY")
@pass_session
def config_explain(session: Session, key: str) -> None:
    """Explain a key of the policy, such as database.app.keep."""
    with _or_without("man dbguard.toml  # explains every key, with its default"):  # not which value is in force
        answer = session.daemon.get("config", "explain", key=key)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.explained(answer, session.zone))


@config.command("schema")
@pass_session
def config_schema(session: Session) -> None:
    """Print the JSON Schema of the policy, for editors."""
    schema = session.daemon.get("config", "schema")
    if session.json:
        session.print_json({"schema": "dbguard.config_schema/1", "json_schema": schema})
    else:
        click.echo(json.dumps(schema, indent=2))


@config.command("diff")
@pass_session
def config_diff(session: Session) -> None:
    """Show what the files on disk would change, and which backups that would delete."""
    answer = session.daemon.get("config", "diff")
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.differing(answer, session.now, session.zone))


@config.command("accept")
@pass_session
def config_accept(session: Session) -> None:
    """Accept a policy that would delete backups, put it in force, and say what goes: at the next expiry."""
    answer = session.daemon.post("config", "accept")
    blocks = [text(Cell("ok", "good"), "  the policy on disk is in force")]
    session.answer(answer, [*blocks, *view.differing(answer, session.now, session.zone, accepted=True)])
