"""What lies at a path, as the one sees it who may: the facts, and the errors of stat."""

import asyncio
import os
import sqlite3
from contextlib import closing

import pytest

from dbguardd.worker.look import look


def looked(path):
    return asyncio.run(look(str(path)))


def test_a_database_is_described(tmp_path):
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path)
    connection.execute("create table t (a)")
    connection.close()
    (tmp_path / "link.db").symlink_to("app.db")
    found = looked(tmp_path / "link.db")
    assert bytes.fromhex(found.pop("head")).startswith(b"SQLite format 3\0")
    size = path.stat().st_size
    known = {"path": str(path.resolve()), "regular": True, "size_bytes": size, "uid": os.geteuid()}
    assert found == {**known, "empty": True}
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("insert into t values (1)")
    assert looked(path)["empty"] is False


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "pipe"):
        found = looked(tmp_path / name)
        assert (found["regular"], found["head"]) == (False, "")


def test_a_name_that_is_not_utf8_is_a_name(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.db")
    open(path, "w").close()
    assert looked(path)["path"] == os.path.realpath(path)


def test_what_may_not_even_be_followed_is_an_error_of_stat(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="Too many levels"):
        looked(link)
    if os.geteuid() == 0:  # the kernel lets nobody follow this one who has given up what we give up
        with pytest.raises(PermissionError):
            looked("/proc/1/fd/0")


@pytest.mark.parametrize(("name", "error"), [("gone.db", FileNotFoundError), ("file/gone.db", NotADirectoryError)])
def test_errors_are_those_of_stat(tmp_path, name, error):
    (tmp_path / "file").touch()
    with pytest.raises(error) as caught:
        looked(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
