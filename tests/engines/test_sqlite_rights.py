"""A restored file has the owner, group, mode, access list and attributes of the original, or it is said which not."""

import grp
import os
import pwd
import struct

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import ledger, make

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NOBODY = pwd.getpwnam("nobody").pw_uid


def access_list(*entries):
    """Return an access list as the kernel has it: version 2, then (tag, rights, number) of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def named(uid, rights):
    """Owner rw, one more user, group r, mask rw, others nothing."""
    none = 0xFFFFFFFF
    return access_list((0x01, 6, none), (0x02, rights, uid), (0x04, 4, none), (0x10, 6, none), (0x20, 0, none))


def attribute(path, name, value):
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"this file system takes no {name}: {error.strerror}")


def backup(live, staging, **settings):
    engine, sink = make(live, staging, **settings), MemorySink()
    facts = engine.dump(sink, no_progress)
    engine.release()
    return engine, MemoryTree(sink, facts)


@pytest.mark.parametrize("method", ["pages", "dump"])
def test_access_list_and_attributes_come_back(live, staging, tmp_path, method):
    ledger(live)
    attribute(live, ACCESS, named(NOBODY, 6))
    attribute(live, "user.owner-of-data", b"shop\0\xff")
    engine, tree = backup(live, staging, method=method)
    assert engine.restore(tree, tmp_path / "new.db", no_progress) == []
    assert os.getxattr(tmp_path / "new.db", ACCESS) == named(NOBODY, 6)
    assert os.getxattr(tmp_path / "new.db", "user.owner-of-data") == b"shop\0\xff"
    assert (tmp_path / "new.db").stat().st_mode == live.stat().st_mode


def test_the_default_list_of_a_directory_lets_nobody_in(live, staging, tmp_path):
    ledger(live)
    live.chmod(0o600)
    engine, tree = backup(live, staging)
    open_place = tmp_path / "open"
    open_place.mkdir()
    attribute(open_place, DEFAULT, named(NOBODY, 6))
    assert engine.restore(tree, open_place / "new.db", no_progress) == []
    assert os.listxattr(open_place / "new.db") == []
    assert (open_place / "new.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_gives_the_file_to_its_owner_by_name(live, staging, tmp_path):
    ledger(live)
    os.chown(live, NOBODY, grp.getgrnam("daemon").gr_gid)
    engine, tree = backup(live, staging)
    tree.facts |= {"uid": 0, "gid": 0}  # another host: the names count
    assert engine.restore(tree, tmp_path / "new.db", no_progress) == []
    found = (tmp_path / "new.db").stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, grp.getgrnam("daemon").gr_gid)


def test_whom_this_host_does_not_know_gets_nothing_and_it_is_said(live, staging, tmp_path):
    ledger(live)
    attribute(live, ACCESS, named(NOBODY, 6))
    engine, tree = backup(live, staging)
    tree.facts |= {"owner": "no-such-user", "uid": NOBODY, "group": "no-such-group"}
    assert engine.restore(tree, tmp_path / "new.db", no_progress) == [
        "owner no-such-user: not known on this host",
        "group no-such-group: not known on this host",
        "access list: users and groups have other numbers here",
    ]
    found = (tmp_path / "new.db").stat()
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert ACCESS not in os.listxattr(tmp_path / "new.db")


def test_in_place_what_is_gone_comes_back_with_its_rights(live, staging, tmp_path):
    ledger(live)
    attribute(live, ACCESS, named(NOBODY, 4))
    engine, tree = backup(live, staging)
    engine.restore(tree, tmp_path / "staged.db", no_progress)
    for path in list(live.parent.iterdir()):
        path.unlink()
    engine.replace(tmp_path / "staged.db", no_progress)
    assert os.getxattr(live, ACCESS) == named(NOBODY, 4)
