"""The way in: run one command, and turn how it ended into an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from dbguardctl.app import PROGRAM, app
from dbguardctl.session import Session
from dbguardd.errors import GuardError, Usage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run dbguardctl and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    session = Session()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = app.main(arguments, PROGRAM, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except GuardError as error:
        session.report(error)
        return error.exit_status
    except click.UsageError as error:
        session.json = session.json or "--json" in arguments
        session.report(_usage(error))
        return Usage.exit_status
    except (KeyboardInterrupt, click.Abort):
        session.say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has seen enough (head, less). Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status if isinstance(status, int) else 0


def _usage(error: click.UsageError) -> Usage:
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx else PROGRAM
    usage = error.ctx.get_usage().removeprefix("Usage: ") if error.ctx else ""
    return Usage(
        f"{command}: {message[:1].lower()}{message[1:]}",
        detail=f"usage: {usage}" if usage else "",
        hints=[f"{command} --help"],
    )


if __name__ == "__main__":
    sys.exit(main())
