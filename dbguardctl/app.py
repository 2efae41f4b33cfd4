"""The command line: global options, the table of commands, and their lookup and listing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from importlib import import_module
from typing import Any

import click

from dbguardctl.options import Given
from dbguardctl.session import Session
from dbguardd.errors import Usage

PROGRAM = "dbguardctl"

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Every day": {
        "status": ("daily:status", "what could be restored, when that was proven, what to do"),
        "list": ("daily:list_backups", "the backups of a database; --why says what keeps them"),
        "show": ("daily:show", "one backup, job or database in full"),
        "backup": ("work:backup", "back up a database now, or all of them"),
        "verify": ("work:verify", "restore a backup somewhere safe, compare, record the proof"),
        "restore": ("restore:restore", "restore to a new place, or --in-place; restore undo"),
        "query": ("questions:query", "ask a backup something without restoring it"),
        "get": ("questions:get", "take one table out of a backup, as SQL or CSV"),
        "diff": ("questions:diff", "what was added, removed and changed between two backups"),
        "undelete": ("questions:undelete", "find rows that are gone, write SQL that puts them back"),
        "undo": ("restore:undo", "put back what restore --in-place replaced"),
        "check": ("work:check", "look at everything that a restore needs, without restoring"),
        "prune": ("work:prune", "delete what the policy no longer keeps; --dry-run says why"),
        "hold": ("daily:hold", "keep a backup whatever the policy says"),
        "release": ("daily:release", "end the holds of a backup"),
        "recall": ("daily:recall", "bring an expired backup back while its grace lasts"),
    },
    "Set up": {
        "init": ("setup:init", "begin a policy file"),
        "protect": ("setup:protect", "protect a database: find, write policy, back up, prove"),
        "unprotect": ("setup:unprotect", "end the protection of a database; its backups stay"),
        "reload": ("setup:reload", "have the daemon read the policy again"),
        "config": ("config:config", "check, show, explain, diff, accept the policy"),
        "key": ("keys:key", "keys: recovery sheet and recovery test"),
        "credential": ("credentials:credential", "secrets in systemd's keeping, which the policy names"),
    },
    "Look after": {
        "schedule": ("care:schedule", "what runs next"),
        "pause": ("care:pause", "start no scheduled jobs of a database for a while"),
        "resume": ("care:resume", "end a pause"),
        "run": ("work:run", "run a job of a database as the schedule would"),
        "job": ("jobs:job", "list, show, watch, cancel running and past work"),
        "log": ("log:log", "what has happened to a database, in words; --follow as it happens"),
        "events": ("log:events", "the same with all facts, for programs"),
        "audit": ("care:audit", "who asked for what, and proof that nobody changed that"),
    },
    "Help": {
        "help": ("help:help", "this, or what a command does and takes"),
        "explain": ("help:explain", "what an error code means; needs no daemon"),
        "push": ("push:push", "for archive_command of PostgreSQL: succeeds when a file is stored"),
        "completion": ("help:completion", "completion for bash, zsh or fish"),
    },
}
"""Every command: module and name below dbguardctl.commands, imported when it is used."""


class Command(click.Command):
    """A command that also takes the global options after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def get_help(self, ctx: click.Context) -> str:
        return _help(ctx, super().get_help(ctx))


class Group(click.Group):
    """A group of our commands; it suggests a similar command for an unknown name."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def get_help(self, ctx: click.Context) -> str:
        return _help(ctx, super().get_help(ctx))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (
            args
            and not args[0].startswith("-")
            and self.get_command(ctx, args[0]) is None
            and not ctx.resilient_parsing
        ):
            command = f"{ctx.command_path} {args[0]}"
            near = suggestions(args, self.list_commands(ctx), ctx)
            guess = f"Did you mean {' or '.join(near)}?" if near else ""
            raise Usage(f"{command}: no such command", detail=guess, hints=[f"{ctx.command_path} --help"])
        return super().resolve_command(ctx, args)


def _add_global_options(command: click.Command) -> None:
    """Make a command accept the global options after its name as well."""
    mine = {name for param in command.params for name in param.opts}
    command.params += [option for option in global_options(hidden=True) if not mine & set(option.opts)]


def _help(ctx: click.Context, said: str) -> str:
    return _as_json("help", "text", said) if _wants_json(ctx) else said


def suggestions(args: list[str], names: list[str], ctx: click.Context) -> list[str]:
    """Return similar commands with the remaining arguments. These are guesses: they may do something else."""
    import shlex  # noqa: PLC0415 - only for an error, like the next
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(args[0], names, 3, 0.5)
    return [f"{ctx.command_path} {shlex.join([name, *args[1:]])}" for name in near]


class Commands(Group):
    """The top group: its commands come from SECTIONS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in SECTIONS.values():
            if cmd_name in section:
                module, _, name = section[cmd_name][0].partition(":")
                command: click.Command = getattr(import_module(f"dbguardctl.commands.{module}"), name)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])


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

        said = f"{PROGRAM} {__version__}"
        click.echo(_as_json("version", "version", __version__) if _wants_json(ctx) else said)
        ctx.exit()


def _wants_json(ctx: click.Context) -> bool:
    """Return whether --json is anywhere in the command line: an option that ends early has not seen all of it."""
    session = session_of(ctx)
    return session.json or "--json" in session.arguments


def _as_json(name: str, member: str, value: str) -> str:
    import json  # noqa: PLC0415 - only here

    return json.dumps({"schema": f"dbguard.{name}/1", member: value})


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
        click.Option(["--socket"], metavar="PATH", type=Given(), callback=_remember("socket"),
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
