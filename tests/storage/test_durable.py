"""Small files of the daemon and its workers are there completely, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dbguardd.durable import create_file, publish_file, replace_file, write_at


def test_a_published_file_replaces_nothing_and_leaves_no_draft(tmp_path: Path) -> None:
    path, draft = tmp_path / "key", tmp_path / f".key.{os.getpid()}.tmp"
    draft.write_text("left by a killed process that had this pid")
    publish_file(path, b"first", 0o666)  # whatever the umask is
    with pytest.raises(FileExistsError):
        publish_file(path, b"second")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"first", 0o666)
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_has_all_of_the_new_content_or_all_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    path.with_name("taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        replace_file(path.with_name("taken"), b"newest")
    assert path.read_bytes() == b"new"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["accepted.json", "taken"]


def test_no_link_is_followed_by_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "link", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_bytes_are_written_at_their_place(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        write_at(file.fileno(), memoryview(b"page 2"), 6)
        write_at(file.fileno(), b"page 1", 0)
        assert file.read() == b"page 1page 2"
