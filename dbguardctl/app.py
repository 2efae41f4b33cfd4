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
_SENTENCE = 200  # characters: no first sentence of a help is longer

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Every day": {
        "status": ("daily:status", "what you could restore, when that was proven, what to do"),
        "list": ("daily:list_backups", "the backups of a database; --why says what keeps them"),
        "show": ("daily:show", "one backup, job or database in full"),
        "backup": ("work:backup", "back up a database now, or all of them"),
        "verify": ("work:verify", "prove a backup: restore it in private and compare"),
        "restore": ("restore:restore", "restore to a new place, or --in-place"),
        "query": ("questions:query", "ask a backup something without restoring it"),
        "get": ("questions:get", "export one table from a backup, as SQL or CSV"),
        "diff": ("questions:diff", "what was added, removed and changed between two backups"),
        "undelete": ("questions:undelete", "find missing rows and write SQL that puts them back"),
        "undo": ("restore:undo", "put back what restore --in-place replaced"),
        "check": ("work:check", "check everything that a restore needs, without restoring"),
        "prune": ("work:prune", "expire what the policy no longer keeps; --dry-run shows why"),
        "hold": ("daily:hold", "keep a backup whatever the policy says"),
        "release": ("daily:release", "end the holds of a backup"),
        "recall": ("daily:recall", "bring back an expired backup during its grace period"),
    },
    "Set up": {
        "init": ("setup:init", "write a first policy file"),
        "protect": ("setup:protect", "protect a database: detect, write policy, back up, prove"),
        "unprotect": ("setup:unprotect", "end the protection of a database; its backups stay"),
        "reload": ("setup:reload", "make the daemon read the policy again"),
        "config": ("config:config", "check, show, explain, diff, accept the policy"),
        "key": ("keys:key", "keys: recovery sheet and recovery test"),
        "credential": ("credentials:credential", "secrets for the policy, encrypted by systemd"),
    },
    "Look after": {
        "schedule": ("care:schedule", "what runs next"),
        "pause": ("care:pause", "pause the scheduled jobs of a database"),
        "resume": ("care:resume", "end a pause"),
        "run": ("work:run", "run a job now, as the schedule would"),
        "job": ("jobs:job", "list, show, watch and cancel jobs"),
        "log": ("log:log", "what has happened, in words; --follow shows new events"),
        "events": ("log:events", "the same with all fields, for programs"),
        "audit": ("care:audit", "who did what, and whether that record is intact"),
    },
    "Help": {
        "help": ("help:help", "this list, or the help of a command"),
        "explain": ("help:explain", "what an error code means; needs no daemon"),
        "push": ("push:push", "for PostgreSQL's archive_command: succeeds once a file is stored"),
        "completion": ("help:completion", "shell completion for bash, zsh or fish"),
    },
}
"""Every command: module and name below dbguardctl.commands, imported when it is used."""


class Command(click.Command):
    """A command that also takes the global options after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # for a missing value, click does not say of which command
            raise

    def get_help(self, ctx: click.Context) -> str:
        return _help(ctx, super().get_help(ctx))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _examples(ctx, formatter)


class Group(click.Group):
    """A group of our commands; it suggests a similar command for an unknown name."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_global_options(self)

    def get_help(self, ctx: click.Context) -> str:
        return _help(ctx, super().get_help(ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence about each command, however long it is."""
        known = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(_SENTENCE)) for name, found in known.items() if found])

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
            from dbguardctl.mistyped import other_command  # noqa: PLC0415 - only on the way to an error

            if other := other_command(args[0]):
                raise Usage(f"{command}: no such command", hints=[other])
            near = suggestions(args, self.list_commands(ctx), ctx)
            guess = f"Did you mean {' or '.join(near)}?" if near else ""
            raise Usage(f"{command}: no such command", detail=guess, hints=[f"{ctx.command_path} --help"])
        return super().resolve_command(ctx, args)


def _add_global_options(command: click.Command) -> None:
    """Make a command accept the global options after its name as well."""
    mine = {name for param in command.params for name in param.opts}
    command.params += [option for option in global_options(hidden=True) if not mine & set(option.opts)]


def _examples(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write command lines that a user can adapt, and where the options are that every command takes."""
    from dbguardctl.examples import EXAMPLES  # noqa: PLC0415 - only for help

    if lines := EXAMPLES.get(ctx.command_path.removeprefix(f"{PROGRAM} ")):
        with formatter.section("Examples"):
            for line in lines:  # never wrapped: they are there to be copied
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    formatter.write_paragraph()
    formatter.write_text(f"Also: --json, --color, --utc, -q, -v, --socket; see {PROGRAM} --help.")


def _help(ctx: click.Context, said: str) -> str:
    return _as_json("help", "text", said) if _wants_json(ctx) else said


def suggestions(args: list[str], names: list[str], ctx: click.Context) -> list[str]:
    """Return similar commands with the remaining arguments. These are guesses: they may do something else.

    A command may also stand in the second place, after the name of a database.
    """
    import shlex  # noqa: PLC0415 - only for an error, like the next
    from difflib import get_close_matches  # noqa: PLC0415

    if args[1:] and args[1] in names:
        args = [args[1], args[0], *args[2:]]
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
                     help="When to use colours; auto: on a terminal, unless NO_COLOR is set.", **value),
        click.Option(["--utc"], help="Show and read times in UTC instead of the local zone.", callback=_utc, **flag),
        click.Option(["-q", "--quiet"], help="Print only results and errors.", callback=_remember("quiet"), **flag),
        click.Option(["-v", "--verbose"], help="Print more.", callback=_remember("verbose"), **flag),
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
    help="Ask dbguardd what you could restore, and tell it what to do. Without a command: status.",
    epilog="Exit statuses and every command: man dbguardctl. An error code: dbguardctl explain CODE.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[
        *global_options(),
        click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
                     help="Print the version and exit."),
    ],
)  # fmt: skip
