"""The command line: global options, the table of commands, and how they are found and listed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from importlib import import_module
from typing import Any

import click

from dbguardctl.session import Session

PROGRAM = "dbguardctl"

SECTIONS: dict[str, dict[str, str]] = {
    "Every day": {
        "status": "daily:status",
        "list": "daily:list_backups",
        "show": "daily:show",
        "backup": "work:backup",
        "verify": "work:verify",
        "restore": "restore:restore",
        "undo": "restore:undo",
        "check": "work:check",
        "prune": "work:prune",
        "hold": "daily:hold",
        "release": "daily:release",
    },
    "Set up": {
        "init": "setup:init",
        "protect": "setup:protect",
        "config": "config:config",
        "key": "keys:key",
    },
    "Look after": {
        "schedule": "care:schedule",
        "pause": "care:pause",
        "resume": "care:resume",
        "run": "work:run",
        "job": "jobs:job",
        "events": "care:events",
        "audit": "care:audit",
    },
    "Help": {
        "explain": "help:explain",
        "completion": "help:completion",
    },
}
"""Every command: module and name below dbguardctl.commands, imported when it is used."""


class Command(click.Command):
    """A command that also takes the global options after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mine = {name for param in self.params for name in param.opts}
        self.params += [option for option in global_options(hidden=True) if not mine & set(option.opts)]


class Group(click.Group):
    """A group of commands of ours."""

    command_class = Command


class Commands(click.Group):
    """The top: commands come from SECTIONS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in SECTIONS.values():
            if where := section.get(cmd_name):
                module, _, name = where.partition(":")
                command: click.Command = getattr(import_module(f"dbguardctl.commands.{module}"), name)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            rows = []
            for name in section:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(90) if command else ""))
            with formatter.section(title):
                formatter.write_dl(rows)


def session_of(ctx: click.Context) -> Session:
    """Return the session of a context."""
    return ctx.ensure_object(Session)


def pass_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command: its first argument is the session."""
    return click.make_pass_decorator(Session, ensure=True)(function)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            setattr(session_of(ctx), name, value)

    return callback


def _utc(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        session_of(ctx).zone = UTC


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from dbguardd import __version__  # noqa: PLC0415 - only here

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


def global_options(*, hidden: bool = False) -> list[click.Option]:
    """Return the options that every command takes, before and after its name."""
    flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "hidden": hidden, "is_eager": True}
    value: dict[str, Any] = {"expose_value": False, "hidden": hidden, "is_eager": True}
    return [
        click.Option(["--json"], help="Print JSON: one object, or one a line while following.",
                     callback=_remember("json"), **flag),
        click.Option(["--color"], type=click.Choice(["auto", "always", "never"]), callback=_remember("color"),
                     help="When to use colours; auto asks the terminal and NO_COLOR.", **value),
        click.Option(["--utc"], help="Show and read times in UTC instead of the local zone.", callback=_utc, **flag),
        click.Option(["-q", "--quiet"], help="Say only results and errors.", callback=_remember("quiet"), **flag),
        click.Option(["-v", "--verbose"], help="Say more.", callback=_remember("verbose"), **flag),
        click.Option(["--socket"], metavar="PATH", callback=_remember("socket"),
                     help="Socket of dbguardd; otherwise $DBGUARD_SOCKET, otherwise /run/dbguard/api.sock.", **value),
    ]  # fmt: skip


def _top(ctx: click.Context) -> Any:
    if ctx.invoked_subcommand is None:
        command = app.get_command(ctx, "status")
        return ctx.invoke(command) if command else None
    return None


app = Commands(
    PROGRAM,
    callback=click.pass_context(_top),
    invoke_without_command=True,
    help="Ask dbguardd what could be restored, and tell it what to do. Without a command: status.",
    epilog="Exit statuses and every command: man dbguardctl. An error code: dbguardctl explain CODE.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[
        *global_options(),
        click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
                     help="Print the version and exit."),
    ],
)  # fmt: skip
