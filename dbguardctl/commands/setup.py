"""init and protect: from nothing to the first proof."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from dbguardctl import watch
from dbguardctl.app import Command, pass_session
from dbguardctl.commands.grants import grants
from dbguardctl.consent import confirmed
from dbguardctl.options import Given, database_argument, from_root, text_option
from dbguardctl.screen import Block, Cell, text
from dbguardctl.session import Session
from dbguardctl.views.setup import loaded, promise, protected, unprotected
from dbguardd.errors import Busy, GuardError, TargetExists, Usage, of_file
from dbguardd.kinds import engine_of
from dbguardd.places import POLICY

STARTER = """\
# What dbguardd protects, how often, where, and for how long. Every key: man 5 dbguard.toml
#
#   check it     dbguardctl config check      all mistakes at once, with file, line and a suggestion
#   preview it   dbguardctl config diff       what would change, and what retention would delete
#   apply it     dbguardctl reload            a bad file is refused; the old policy keeps running
#
# Drop-ins in conf.d/*.toml beside this file are merged after it; `dbguardctl protect PATH` writes one for you.
# No secret stands here. It is named: { credential = "NAME" }, { file = "/path" } or { command = ["..."] }.

version = 1

# [defaults]                          # every database inherits these
# backup = "daily 01:00"              # also "every 15min", "sun 02:00", or five cron fields
# verify = "after-backup"             # restore each backup somewhere safe and compare
# keep   = { last = 3, daily = 7, weekly = 4, monthly = 12 }

# [database.app]                      # a database, and the name it has everywhere
# engine = "sqlite"
# path   = "/var/lib/app/app.db"
"""


@click.command(cls=Command)
@click.option("--policy", default=None, show_default=POLICY, metavar="FILE", type=Given(),
              help="The policy file to write.")  # fmt: skip
@text_option("--sql", metavar="URL", help="Print the SQL that creates the role on a PostgreSQL server, and do nothing.")
@pass_session
def init(session: Session, policy: str | None, sql: str) -> None:
    """Begin a policy file, commented, if there is none, and print what to do next."""
    if sql:
        if policy is not None:
            raise Usage("init: --sql writes no policy; give one of both")
        if session.json:
            session.print_json({"schema": "dbguard.init/1", "sql": grants(sql)})
        else:
            sys.stdout.write(grants(sql))  # unchanged: it is input for psql
        return
    policy = policy or POLICY
    path = Path(policy)
    os.umask(os.umask(0o022) | 0o022)  # other users must not be able to write in new parent directories either
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", buffering=1) as file:
            try:
                os.fchmod(file.fileno(), 0o644)
                file.write(STARTER)
            except OSError:  # a full disk: half a policy would keep the next try from writing a whole one
                path.unlink()
                raise
    except FileExistsError as error:
        raise TargetExists(f"{path}: there is a policy already", hints=[_checking(path)]) from error
    except PermissionError as error:
        denied = of_file(f"{path}: cannot be written", error)
        denied.hints = (f"sudo dbguardctl init --policy {shlex.quote(policy)}",) if os.geteuid() else ()
        raise denied from error
    except OSError as error:
        raise of_file(f"{path}: cannot be written", error) from error
    steps = [*_starting(path), "dbguardctl protect PATH", "dbguardctl key recovery-sheet main"]
    blocks: list[Block] = [text(Cell("ok", "good"), f"  wrote {path} ({len(STARTER.splitlines())} lines)")]
    blocks += [text(Cell("next  ", "dim"), Cell(step, "try"), indent=4) for step in steps]
    session.answer({"schema": "dbguard.init/1", "policy": str(path), "next": steps}, blocks)


def _starting(path: Path) -> list[str]:
    """Return commands that start a daemon with this policy and let the next commands find it."""
    if path == Path(POLICY):
        return ["systemctl enable --now dbguardd"]
    place = path.absolute().parent
    options = {"policy": path.absolute(), "state": place / "state", "socket": place / "api.sock"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [f"{shlex.join(['dbguardd', *words])} &", f"export DBGUARD_SOCKET={shlex.quote(str(options['socket']))}"]


def _checking(path: Path) -> str:
    """Return the command that checks this policy; a running daemon may use another one."""
    usual = path == Path(POLICY)
    return "dbguardctl config check" if usual else f"dbguardd --policy {shlex.quote(str(path))} --check-config"


@click.command(cls=Command)
@pass_session
def reload(session: Session) -> None:
    """Have the daemon read the policy again.

    A policy with mistakes is refused, and so is one that would delete existing backups at once (see config diff); the
    old one stays in force then.
    """
    answer = session.daemon.post("reload")
    session.answer(
        answer, [text(Cell("ok", "good"), "  the policy on disk is in force"), *loaded(answer, session.zone)]
    )


@click.command(cls=Command)
@click.argument("path", metavar="PATH|URL", type=click.Path(readable=False))  # the daemon reads it
@text_option("--name", metavar="NAME", help="Name of the database; default: made from the path.")
@click.option("--continuous", is_flag=True, help="Follow its log as well: any second can be restored.")
@text_option("--adopt", metavar="NAME", help="It is the former database NAME: continue its backups.")
@text_option("--confirm", metavar="NAME", help="With --adopt: it is that database, although it looks different.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@pass_session
def protect(session: Session, path: str, dry_run: bool, **asked: Any) -> int:
    """Protect a database: find out what it is, write its policy, back it up, prove the backup by a restore."""
    if not path:
        raise Usage("protect: the path is empty", hints=["dbguardctl protect PATH"])
    body = {"path": path if _is_server(path) else from_root(path), "dry_run": dry_run}
    body |= {word: value for word, value in asked.items() if value}
    answer = session.daemon.post("protect", body=body)
    if not session.json:
        session.out.show(protected(answer, whole=dry_run or session.verbose))
    if dry_run:
        if session.json:
            session.print_json(answer)
        return 0
    name = str(answer["database"])
    if wrote := answer.get("wrote"):
        end = f"dbguardctl unprotect {name}"
        session.left = (f"The policy {wrote} stays: {name} is backed up by schedule.", end)
    rows = watch.settle(session, _first_backup(session, answer))
    if session.json:
        session.print_json({**answer, **watch.answer("protect", rows)})
    for row in rows:
        if error := watch.failure(row):
            raise _with_what_stays(session, error)
    if not session.json:
        session.out.show(promise(session.daemon.get("status"), name, session.now, session.zone))
    return watch.verdict(rows)


def _is_server(place: str) -> bool:
    return "://" in place or engine_of(place) is not None


def _with_what_stays(session: Session, error: GuardError) -> GuardError:
    if session.left:
        stays, end = session.left
        error.detail = "\n".join(filter(None, (error.detail, stays)))
        error.hints = (*error.hints, f"{end} --dry-run")
    return error


@click.command(cls=Command)
@database_argument()
@text_option("--confirm", metavar="NAME", help="The name of the database, typed in full.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@pass_session
def unprotect(session: Session, database: str, confirm: str, dry_run: bool) -> None:
    """End the protection of a database: remove the policy drop-in that `protect` wrote. Its backups stay."""
    session.wanted_database = database
    answer = session.daemon.post("databases", database, "unprotect", body={"confirm": "", "dry_run": True})
    if not dry_run:  # report what is impossible before the user has to type a name
        confirm = confirmed(session, database, confirm, "ends the protection of the database")
        answer = session.daemon.post("databases", database, "unprotect", body={"confirm": confirm, "dry_run": False})
    session.answer(answer, unprotected(answer))


def _first_backup(session: Session, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the job of the first backup: the one that the daemon started, or a new one."""
    job = answer.get("job")
    if isinstance(job, dict):
        return job
    try:
        if not job:
            return watch.start(session, "backup", {"database": answer["database"], "verify": True})
    except Busy as error:
        job = error.facts.get("job")
        if not job:
            raise
    return dict(session.daemon.get("jobs", str(job))["job"])
