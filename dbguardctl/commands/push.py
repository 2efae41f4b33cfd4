"""push: the program for PostgreSQL's archive_command. It talks to the follower of the log, not to the daemon."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress

import click

from dbguardctl.app import Command, pass_session
from dbguardctl.session import Session
from dbguardd.errors import SourceReplaced, Unreachable, of_file
from dbguardd.places import PUSH_SOCKET

_AGAIN = "The server keeps the file, and tries again."
_LOOK = ("dbguardctl status", "dbguardctl check")
_SECONDS = 60.0
_PIECE, _ANSWER_BYTES = 1 << 20, 1024


@click.command(cls=Command)
@click.argument("place")
@click.argument("file")
@pass_session
def push(session: Session, place: str, file: str) -> None:
    """Succeed once FILE of a PostgreSQL server's log is stored by the process that follows it in PLACE.

    This is the program for archive_command; `dbguardctl check` prints the complete setting. If it fails, the server
    keeps the file and tries again.
    """
    name = os.path.basename(file)
    try:
        said = _asked(place, f"1 {name} {_digest(file)}\n".encode())
    except OSError as error:
        raise Unreachable(
            f"push: {name} is not stored: the log is not followed, or its storage accepts nothing now",
            detail=f"{place}: {error.strerror or error}. {_AGAIN}",
            hints=_LOOK,
        ) from error
    verdict, _, why = said.partition(" ")
    if verdict != "ok" and (not why or why.endswith("yet")):
        raise Unreachable(f"push: {name}: {why or 'was not answered'}", detail=_AGAIN, hints=_LOOK)
    if verdict != "ok":
        raise SourceReplaced(
            f"push: {name}: {why}",
            detail=f"A copy of a server has its archive_command, too, and must not use that. {_AGAIN}",
            hints=["ALTER SYSTEM RESET archive_command;  -- at the copy; then SELECT pg_reload_conf()", *_LOOK],
        )
    if session.json:
        session.print_json({"schema": "dbguard.push/1", "file": name, "answer": why})


def _digest(file: str) -> str:
    found = hashlib.sha256()
    try:
        with open(file, "rb") as opened:
            while piece := opened.read(_PIECE):
                found.update(piece)
    except OSError as error:
        raise of_file(f"push: {file} cannot be read", error) from error
    return found.hexdigest()


def _asked(place: str, question: bytes) -> str:
    """Ask the listener in a directory, whose path may be longer than a socket's path can be."""
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_SECONDS)
            line.connect(f"/proc/self/fd/{directory}/{PUSH_SOCKET}")
            line.sendall(question)
            answer = b""
            with suppress(ConnectionResetError):
                while not answer.endswith(b"\n") and (piece := line.recv(_ANSWER_BYTES)):
                    answer += piece
            return answer.decode(errors="replace").strip()
    finally:
        os.close(directory)
