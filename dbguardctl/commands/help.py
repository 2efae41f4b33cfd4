"""help, explain and completion: what needs no daemon."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from dbguardctl.app import PROGRAM, Command, pass_session
from dbguardctl.screen import Block, Cell, text
from dbguardctl.session import Session
from dbguardd.errors import EXIT_STATUSES, OUTCOMES, GuardError, NotFound, did_you_mean


def _complete_code(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(code, help=kind.title) for code, kind in OUTCOMES.items() if code.startswith(incomplete.upper())
    ]


@click.command(cls=Command)
@click.argument("command", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help(ctx: click.Context, command: tuple[str, ...]) -> None:
    """List the commands, or describe one of them; the same as --help."""
    ctx.find_root().command.main([*command, "--help"], PROGRAM, standalone_mode=False, obj=ctx.obj)


@click.command(cls=Command)
@click.argument("code", metavar="CODE", shell_complete=_complete_code)
@pass_session
def explain(session: Session, code: str) -> None:
    """Explain an error code: what it means for the data, and what to do. Needs no daemon."""
    wanted = code.strip().strip("[]").upper()
    wanted = f"DBG-{wanted}" if wanted.isdigit() else wanted
    kind = OUTCOMES.get(wanted)
    if kind is None:
        near = did_you_mean(wanted, list(OUTCOMES))
        raise NotFound(f"{code}: there is no such code", detail=near, hints=["man dbguard-errors"])
    answer = {
        "schema": "dbguard.explain/1", "code": kind.code, "title": kind.title, "what": _what(kind),
        "meaning": kind.meaning, "advice": kind.advice, "retryable": kind.transient,
        "exit_code": kind.exit_status, "status": kind.http_status,
    }  # fmt: skip
    again = "Trying again can help." if kind.transient else "Trying again does not help by itself."
    blocks: list[Block] = [
        text(Cell(f"{kind.code}  {kind.title}", "strong")),
        text(_what(kind), indent=2),
        text(kind.meaning, indent=2),
        text(again, indent=2),
        text(f"Exit status {kind.exit_status}: {EXIT_STATUSES.get(kind.exit_status, 'failed')}.", indent=2),
        text(Cell("try  ", "dim"), kind.advice, indent=2),
    ]
    session.answer(answer, blocks)


def _what(kind: type[GuardError]) -> str:
    return " ".join((kind.__doc__ or "").split())


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print the script that completes commands, options, databases and ids in a shell."""
    from dbguardctl.app import app  # noqa: PLC0415 - the whole tree, only here

    kind = get_completion_class(shell)
    if kind is None:
        raise NotFound(f"{shell}: no completion for this shell")
    source = kind(app, {}, PROGRAM, "_DBGUARDCTL_COMPLETE").source()
    if session.json:
        session.print_json({"schema": "dbguard.completion/1", "shell": shell, "script": source})
    else:
        click.echo(source)
