"""What a server's log says when a file of its log is not stored."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from dbguardd.places import PUSH_SOCKET

NAME = "00000001000000000000000D"


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Listen in a directory as the follower does, and give one answer."""
    with socket.socket(socket.AF_UNIX) as door:
        (tmp_path / NAME).write_bytes(b"log")
        door.bind(str(tmp_path / PUSH_SOCKET))
        door.listen()

        def begin(answer: str) -> Path:
            def serve() -> None:
                with door.accept()[0] as line:
                    line.recv(1024)
                    line.sendall(f"{answer}\n".encode())

            Thread(target=serve, daemon=True).start()
            return tmp_path

        yield begin


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ("ok it is stored", 0, ()),
        ("no it is not stored yet", 11, ("not stored yet", "tries again", "Nothing new could be stored")),
        ("no a different file is stored under that name", 1, ("RESET archive_command", "are not replaced by others")),
    ],
)
def test_a_refusal_is_about_this_file_and_not_about_a_daemon_or_a_gap(
    inside: Callable[..., int],
    answering: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    answer: str,
    status: int,
    says: tuple[str, ...],
) -> None:
    place = answering(answer)
    assert inside("push", str(place), str(place / NAME)) == status
    said = capsys.readouterr().err
    assert all(one in said for one in says)
    assert not any(wrong in said for wrong in ("in the gap", "daemon is down", "job watch"))


def test_where_nobody_listens_nothing_is_said_about_the_daemon(
    inside: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).write_bytes(b"log")
    assert inside("push", str(tmp_path), str(tmp_path / NAME)) == 11
    said = capsys.readouterr().err
    assert "is not stored: the log is not followed" in said and "daemon is down" not in said
