"""key: which keys open the backups, and proof that the recovery key does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dbguardctl.app import Group, pass_session
from dbguardctl.consent import can_ask
from dbguardctl.humanize import when
from dbguardctl.options import Name, _ask, text_option
from dbguardctl.screen import Block, Cell, Table, paragraph, text
from dbguardctl.session import Session
from dbguardd.errors import NotFound, TargetExists, Usage, did_you_mean, of_file
from dbguardd.humanize import count

_IDENTITY, _IDENTITY_REST = "AGE-SECRET-KEY-1", 58
_BLOCKS = "\N{LOWER HALF BLOCK}\N{UPPER HALF BLOCK}\N{FULL BLOCK}"


def _complete_key(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    rows = _ask(ctx, "keys").get("keys", [])
    return [CompletionItem(row["name"]) for row in rows if row["name"].startswith(incomplete)]


def _complete_recipient(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = (name for row in _ask(ctx, "keys").get("keys", []) for name in row["recovery"])
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


_name = click.argument("name", metavar="[NAME]", default="main", type=Name(), shell_complete=_complete_key)


@click.group(cls=Group)
def key() -> None:
    """Look after the keys: without one, backups are noise."""


@key.command("list")
@pass_session
def key_list(session: Session) -> None:
    """List the keys, and whether a recovery copy was ever tested."""
    answer = session.daemon.get("keys")
    if session.json:
        session.print_json(answer)
        return
    rows = [line for row in answer["keys"] for line in _recipients(session, row)]
    session.out.show([Table(("KEY", "KIND", "TESTED", "RECOVERY"), rows)])


def _recipients(session: Session, row: dict[str, Any]) -> list[tuple[Cell | str, ...]]:
    """Return a line for each recovery recipient of a key: the test of one says nothing about the others."""
    tested = {one["recipient"]: one["tested_at"] for one in row.get("recipients") or ()}
    lines: list[tuple[Cell | str, ...]] = []
    nobody = "none" if row.get("known", True) else "not read yet"
    for name in row["recovery"] or [""]:
        moment = tested.get(name)
        last = when(moment, session.now, session.zone) if moment else "never"
        lines.append((Cell(row["name"], "strong"), row["kind"], last, name or Cell(nobody, "warn")))
    return lines


@key.command("recovery-sheet")
@_name
@text_option("--svg", metavar="FILE", help="Write the QR code of the sheet to this new file, mode 0600.")
@pass_session
def recovery_sheet(session: Session, name: str, svg: str) -> None:
    """Make a recovery key and print its sheet, once. The daemon keeps only the public half: print it, then clear."""
    file = _create(svg) if svg else None
    try:
        answer = session.daemon.post("keys", name, "recovery-sheet")
        _show_sheet(session, name, answer)  # first: it is shown only once, and a full disk must not lose it
        if file is not None:
            with open(file, "wb", closefd=False) as svg_file:
                svg_file.write(str(answer.get("qr_svg") or "").encode())
    except BaseException:
        if file is not None:
            Path(svg).unlink(missing_ok=True)
        raise
    finally:
        if file is not None:
            os.close(file)


def _show_sheet(session: Session, name: str, answer: dict[str, Any]) -> None:
    if session.json:
        session.print_json(answer)
        return
    screen = session.out
    sheet = str(answer.get("sheet_text") or answer.get("identity") or "")
    screen.show(paragraph(sheet if screen.utf8 else _without_code(sheet)))
    session.say("Print this or write it down, keep it away from this machine, and close this window. Then test it: ",
                Cell(f"dbguardctl key recovery-test {name}", "try"))  # fmt: skip
    _say_others(session, name, answer.get("others") or [])


def _say_others(session: Session, name: str, others: list[str]) -> None:
    """List the other sheets that open the backups: one of them may be lost, and should be revoked."""
    if others:
        open_too = "opens the backups as well" if len(others) == 1 else "open the backups as well"
        session.say(f"{count(len(others), 'other recovery key')} {open_too}. Withdraw one that is lost:")
        for recipient in others:
            session.say("    ", Cell(f"dbguardctl key recovery-drop {recipient} {name}", "try"))


def _without_code(sheet: str) -> str:
    """Return a sheet without its QR code, whose block characters an ASCII terminal cannot show."""
    lines = sheet.splitlines()
    code = [number for number, line in enumerate(lines) if set(line) & set(_BLOCKS)]
    if code:
        lines[code[0] : code[-1] + 1] = ["    (no QR code: this terminal is not UTF-8; --svg FILE writes it)"]
    return "\n".join(lines)


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise TargetExists(f"{path}: exists already", hints=["choose another file with --svg"]) from error
    except OSError as error:
        raise of_file(f"{path}: cannot be written", error) from error


@key.command("recovery-test")
@_name
@pass_session
def recovery_test(session: Session, name: str) -> None:
    """Prove that a recovery key opens the backups. It is typed without echo, or read from standard input."""
    identity = _identity(session, name, f"dbguardctl key recovery-test {name}")
    answer: dict[str, Any] = session.daemon.post("keys", name, "recovery-test", body={"identity": identity})
    blocks: list[Block] = [text(Cell("proven", "good"), f"  the recovery key opens the backups of key {name}")]
    session.answer(answer, blocks)


@key.command("recovery-drop")
@click.argument("recipient", metavar="RECIPIENT", type=Name(), shell_complete=_complete_recipient)
@_name
@text_option("--confirm", metavar="RECIPIENT", help="The same recipient again; asked for on a terminal.")
@pass_session
def recovery_drop(session: Session, recipient: str, name: str, confirm: str) -> None:
    """Let the recovery key of a lost sheet open the backups no longer. `key list` shows the recipients.

    A copy of the storage that somebody made before still opens with it.
    """
    if not confirm and can_ask(session):
        rows = session.daemon.get("keys")["keys"]
        others = [one for row in rows if row["name"] == name for one in row.get("recipients") or ()]
        left = [one for one in others if not one["recipient"].startswith(recipient)]
        tested = sum(one["tested_at"] is not None for one in left)
        stay = f"Recovery keys that stay: {len(left)}, tested: {tested or 'none'}."
        session.err.show([text(Cell(f"{recipient} will no longer open the backups. {stay}", "bad"))])
        asked = f"Type {recipient} to go on"
        confirm = str(click.prompt(asked, default="", show_default=False, err=True)).strip()
    fields = {"recipient": recipient, "confirm": confirm}
    answer: dict[str, Any] = session.daemon.post("keys", name, "recovery-drop", body=fields)
    blocks: list[Block] = [
        text(
            Cell("ok", "good"),
            f"  {row['recipient']} no longer opens storage {row['storage']}; others: {len(row['left'])}",
        )
        for row in answer.get("repositories", ())
    ]
    session.answer(answer, blocks)


@key.command("recover")
@_name
@pass_session
def recover(session: Session, name: str) -> None:
    """Let this machine open the backups of one that is lost, by the recovery key.

    It is typed without echo, or read from standard input.
    """
    identity = _identity(session, name, f"dbguardctl key recover {name}")
    answer: dict[str, Any] = session.daemon.post("keys", name, "recover", body={"identity": identity})
    blocks: list[Block] = [
        text(Cell("ok", "good"), f"  storage {row['storage']} is open; backups {row['backups']}, mark {row['mark']}")
        for row in answer.get("repositories", ())
    ]
    blocks.append(text("They are yours only if the recovery sheet shows the same mark."))
    session.answer(answer, [*blocks, text(Cell("next  ", "dim"), Cell("dbguardctl status", "try"))])


def _identity(session: Session, name: str, command: str) -> str:
    """Return the recovery key that was typed or read from standard input; the name of the key is checked first."""
    known = [str(row["name"]) for row in session.daemon.get("keys")["keys"]]
    if name not in known:
        detail = " ".join(part for part in (did_you_mean(name, known), f"Keys: {', '.join(known)}.") if part)
        raise NotFound(f"{name}: no such key in the policy", detail=detail, hints=["dbguardctl key list"])
    words = _typed() if sys.stdin.isatty() else sys.stdin.read(65536)
    begin, rest = _parts(words)
    if begin:  # it may be a whole sheet
        return begin + rest[:_IDENTITY_REST]
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        raise Usage(
            "key: one line with the recovery key is needed",
            detail=f"There were {len(lines)} lines.",
            hints=[f"{command} < FILE"],
        )
    return lines[0]


def _typed() -> str:
    """Read a recovery key from the terminal, over as many lines as on the sheet, until an empty one.

    Nothing of it is echoed or left for the shell: what was pasted beyond it is discarded while echo is off.
    """
    import termios  # noqa: PLC0415 - only when a person types

    before, words = termios.tcgetattr(sys.stdin), ""
    silent = [*before]
    silent[3] &= ~termios.ECHO
    ask = "Recovery key (AGE-SECRET-KEY-1..., not shown): "
    termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, silent)
    try:
        while len(_parts(words)[1]) < _IDENTITY_REST:
            click.echo(ask, nl=False, err=True)
            line = sys.stdin.readline()
            click.echo(err=True)
            if not line.strip():
                break
            words += line
            ask = f"{_IDENTITY_REST - len(_parts(words)[1])} characters more (an empty line ends it): "
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)
    return words


def _parts(words: str) -> tuple[str, str]:
    """Return the prefix of a recovery key (empty if there is none), and what follows it without white space."""
    _, begin, rest = "".join(words.upper().split()).partition(_IDENTITY)
    return begin, rest
