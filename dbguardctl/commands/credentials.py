"""credential: secrets kept by the service manager, for dbguardd's policy to name."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Any

import click
from click.shell_completion import CompletionItem

from dbguardctl.app import Group, pass_session
from dbguardctl.credstore import MOST_BYTES, Credstore
from dbguardctl.humanize import when
from dbguardctl.options import _ask
from dbguardctl.screen import Block, Cell, Table, text
from dbguardctl.session import Session
from dbguardd.errors import DaemonUnreachable, Held, Usage

_RESTART = "systemctl restart dbguardd"
_KEY_BYTES = 32


def _complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    rows = _ask(ctx, "credentials").get("credentials", [])
    return [CompletionItem(row["name"]) for row in rows if row["name"].startswith(incomplete)]


_name = click.argument("name", metavar="NAME", shell_complete=_complete)


@click.group(cls=Group)
def credential() -> None:
    """Keep secrets with the service manager: encrypted on disk, given to dbguardd alone."""


@credential.command("set")
@_name
@click.option("--random", is_flag=True, help="Make 32 random bytes, as a machine key needs; nobody ever sees them.")
@click.option("--replace", is_flag=True, help="Replace one that is set already.")
@pass_session
def credential_set(session: Session, name: str, random: bool, replace: bool) -> None:
    """Set a secret. It is typed without echo, or read from standard input; it is never an argument."""
    store = Credstore()
    store.check(name, "set")  # before anything is typed
    secret = os.urandom(_KEY_BYTES) if random else _secret(name)
    store.set(name, secret, replace=replace)
    answer = {"schema": "dbguard.credential/1", "name": name, "restart": _RESTART}
    session.answer(
        answer, [text(Cell("ok", "good"), f"  credential {name} is set, encrypted for this host"), *_after()]
    )


@credential.command("rm")
@_name
@click.option("--force", is_flag=True, help="Remove it although the policy names it.")
@pass_session
def credential_rm(session: Session, name: str, force: bool) -> None:
    """Remove a secret. What is encrypted with it needs another key from then on."""
    store = Credstore()
    store.check(name, "rm")
    users = [] if force else [use for row in _known(session) if row["name"] == name for use in row["used_by"]]
    if users:
        raise Held(
            f"credential {name}: the policy names it",
            detail=f"{', '.join(users)} would be without its secret at the next start of dbguardd.",
            hints=[f"dbguardctl credential rm {name} --force"],
        )
    store.remove(name)
    answer = {"schema": "dbguard.credential/1", "name": name, "restart": _RESTART}
    left = text("What was encrypted with it stays, and needs another key: the recovery key, for backups.", indent=4)
    session.answer(answer, [text(Cell("ok", "good"), f"  credential {name} is removed"), left, *_after()])


@credential.command("list")
@pass_session
def credential_list(session: Session) -> None:
    """List the secrets that are set or that the policy names, and whether dbguardd has them."""
    rows = [_row(row) for row in _joined(_known(session), Credstore().names())]
    if session.json:
        session.print_json({"schema": "dbguard.credentials/1", "credentials": rows})
        return
    if not rows:
        session.out.show([text("No credentials: nothing is set, and the policy names none.")])
        return
    table = [
        (
            Cell(row["name"], "strong"),
            when(row["set_at"], session.now, session.zone) if row["set_at"] else "unknown",
            ", ".join(row["used_by"]) or "nothing",
            _state(row),
        )
        for row in rows
    ]
    blocks: list[Block] = [Table(("CREDENTIAL", "SET", "USED BY", "DBGUARDD"), table)]
    session.out.show([*blocks, *(_after() if any(row["needs_restart"] for row in rows) else [])])


def _after() -> list[Block]:
    return [text("dbguardd has it as it is now after: ", Cell(_RESTART, "try"))]


def _state(row: dict[str, Any]) -> Cell:
    if row["needs_restart"]:
        return Cell("after a restart", "warn")
    return Cell("has it", "good") if row["given_at"] else Cell("does not have it", "bad" if row["used_by"] else "warn")


def _known(session: Session) -> list[dict[str, Any]]:
    """Return the daemon's list; empty if it does not run: the policy may need a credential before the first start."""
    try:
        rows: list[dict[str, Any]] = session.daemon.get("credentials")["credentials"]
    except DaemonUnreachable:
        return []
    return rows


def _joined(known: list[dict[str, Any]], stored: dict[str, float] | None) -> list[dict[str, Any]]:
    rows = {row["name"]: {**row, "set_at": None} for row in known}
    for name, moment in (stored or {}).items():
        row = rows.setdefault(name, {"name": name, "used_by": [], "given_at": None})
        row["set_at"] = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [rows[name] for name in sorted(rows)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    newer = row["set_at"] is not None and (row["given_at"] is None or row["given_at"] < row["set_at"])
    return {**row, "needs_restart": newer}


def _secret(name: str) -> bytes:
    if not sys.stdin.isatty():
        return sys.stdin.buffer.read(MOST_BYTES + 1)
    from getpass import getpass  # noqa: PLC0415 - only when a person types

    first = getpass(f"Secret for {name} (not shown): ", stream=None)
    if getpass("The same again: ", stream=None) != first:
        raise Usage(f"credential {name}: the two were not the same")
    return first.encode()
