"""Runs one command, and translates its end into an exit status."""

from __future__ import annotations

import io
import os
import sys

import click

from dbguardctl.app import PROGRAM, app
from dbguardctl.session import Session
from dbguardd.errors import GuardError, Internal, Usage


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status."""
    session = Session()
    session.arguments = arguments
    _mend_streams()
    try:
        status = app.main(arguments, PROGRAM, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except GuardError as error:
        session.report(error)
        return error.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        return _incomplete(session, error)
    except click.UsageError as error:
        session.json = session.json or "--json" in arguments
        session.report(_usage(session, error))
        return Usage.exit_status
    except (KeyboardInterrupt, click.Abort):
        session.interrupted()
        return 130
    except OSError as error:
        return _unwritten(error)
    except SystemExit:  # this is how click ends when a reader has closed the pipe
        return _unwritten(BrokenPipeError())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if session.verbose:
            import traceback  # noqa: PLC0415 - only on the way to an error

            traceback.print_exc()
        session.report(_misunderstood(error))
        return Internal.exit_status
    return status if isinstance(status, int) else 0


def _mend_streams() -> None:
    """Make every character writable, and replace closed streams by /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unwritten(error: OSError) -> int:
    """Return the exit status if the answer could not be written: 0 if its reader (head, less) has read enough."""
    # Otherwise Python would report the error again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    sys.stderr.write(f"{PROGRAM}: the answer cannot be written: {error.strerror or error}\n")
    return 1


def _misunderstood(error: Exception) -> Internal:
    return Internal(
        "dbguardctl: the daemon gave an unexpected answer",
        detail=f"{type(error).__name__}: {error}",
        hints=["dbguardctl --version", "dbguardd --version"],
    )


def _incomplete(session: Session, error: click.exceptions.NoArgsIsHelpError) -> int:
    """Show the help of a command group that was called without a command."""
    if session.json and error.ctx:
        session.report(
            Usage(f"{error.ctx.command_path}: give one of its commands", hints=[f"{error.ctx.command_path} --help"])
        )
    else:
        click.echo(error.format_message(), err=True)
    return Usage.exit_status


def _usage(session: Session, error: click.UsageError) -> GuardError:
    from dbguardctl.mistyped import elsewhere, other_name, unquoted  # noqa: PLC0415 - only on the way to an error

    other, place = other_name(error), elsewhere(error)
    message = " ".join((error.message if place else error.format_message()).split()).rstrip(".")
    command = error.ctx.command_path if error.ctx else PROGRAM
    usage = error.ctx.get_usage().removeprefix("Usage: ") if error.ctx else ""
    detail = f"usage: {usage}" if usage else ""
    if other:
        detail = f"{detail}\nDid you mean {other}?"
    return unquoted(
        session,
        Usage(f"{command}: {message[:1].lower()}{message[1:]}", detail=detail, hints=[place or f"{command} --help"]),
    )
