"""The two halves of a worker on a real host: each may do its own part, and no more."""

import json
import struct

import pytest

from tests.packaging import trees
from tests.packaging.applications import application, count, held, rights
from tests.process.house import until

SEAL = """
import os, sys
os.setxattr(sys.argv[1], "user.shop", b"42")
os.setxattr(sys.argv[1], "system.posix_acl_access", bytes.fromhex(sys.argv[2]))
"""
POLICY = """
[database.{name}]
engine = "sqlite"
path = "/var/lib/{name}/{name}.db"
lock_timeout = "1h"
verify = "off"
"""
HALVES = """
import json, os, pwd
found = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{name}/cmdline").read().split("\\0")
        status = dict(line.split(":", 1) for line in open(f"/proc/{name}/status").read().splitlines())
        environment = open(f"/proc/{name}/environ").read()
        files = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
    except OSError:
        continue
    if "dbguardd.worker" in words:
        half = words[words.index("dbguardd.worker") + 1]
        found[half] = {
            "user": pwd.getpwuid(int(status["Uid"].split()[1])).pw_name,
            "capabilities": [int(status[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
            "no_new_privs": status["NoNewPrivs"].strip(),
            "files": [file for file in files if file.startswith("/")],
            "environment": [pair.partition("=")[0] for pair in environment.split("\\0") if pair],
        }
print(json.dumps(found))
"""


def list_for(uid):
    """Return an access list that lets one more user read, as the kernel has it."""
    entries = [(1, 6, -1), (2, 4, uid), (4, 0, -1), (16, 4, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.fixture(scope="module")
def shop(machine):
    """A protected application whose database carries an access list and an attribute."""
    path = application(machine, "shop")
    uid = int(machine.run("id", "-u", "nobody").out)
    machine.python(SEAL, path, list_for(uid).hex(), user="shop")
    before = rights(machine, path), rights(machine, "/var/lib/shop")
    assert machine.does("protect", path)["database"] == "shop"
    assert (rights(machine, path), rights(machine, "/var/lib/shop")) == before
    yield path
    machine.run("rm", "/etc/dbguard/conf.d/shop.toml")
    machine.does("reload")


def test_a_private_database_is_proven_without_a_permission_changed(machine, shop):
    (row,) = [row for row in machine.does("status")["databases"] if row["name"] == "shop"]
    assert (row["state"], row["backups"]) == ("safe", 1)
    assert machine.path(f"/proc/{machine.show('MainPID')}").stat().st_uid == int(machine.run("id", "-u", "dbguard").out)


@trees.ONE_SUITE
def test_a_restored_file_is_the_owners_with_all_its_rights(machine, shop):
    done = machine.does("restore", "shop", "--to", "/var/lib/shop/again.db")
    assert [row["outcome"] for row in done["findings"] if row["name"] == "owner and rights"] == ["ok"]
    assert rights(machine, "/var/lib/shop/again.db") == rights(machine, shop)
    assert count(machine, "/var/lib/shop/again.db", user="shop") == 500


@trees.ONE_SUITE
def test_in_place_the_file_keeps_its_rights_also_when_it_was_gone(machine, shop):
    before = rights(machine, shop)
    machine.does("restore", "shop", "--in-place", "--confirm", "shop")
    assert rights(machine, shop) == before
    machine.run("sh", "-c", f"rm {shop}*")
    machine.does("restore", "shop", "--in-place", "--confirm", "shop")
    assert rights(machine, shop) == before
    assert count(machine, shop, user="shop") == 500


def test_each_half_has_its_own_part_only(machine, bare):
    path = application(machine, "desk")
    machine.put(POLICY.format(name="desk"), "/etc/dbguard/conf.d/desk.toml", owner="dbguard")
    machine.does("reload")
    with held(machine, path, "desk"):
        job = machine.ctl("backup", "desk", "--no-wait").out.strip()
        until(lambda: machine.job(job)["step"] == "snapshot", machine.why)
        halves = json.loads(machine.python(HALVES))
        machine.ctl("job", "cancel", job)
    assert {half: row["user"] for half, row in halves.items()} == {"repository": "dbguard", "engine": "desk"}
    for row in halves.values():
        assert row["capabilities"] == [0, 0, 0, 0]
        assert row["no_new_privs"] == "1"
        assert set(row["environment"]) <= {"PATH", "LANG", "TZ", "MALLOC_ARENA_MAX", "CREDENTIALS_DIRECTORY"}
    own = "/var/lib/dbguard/staging/desk-"  # the directory that it works in, and nothing else
    known = [file for file in halves["engine"]["files"] if file.startswith("/var/lib/dbguard")]
    assert all(file.startswith(own) for file in known), known
    assert not [file for file in halves["repository"]["files"] if file.startswith("/var/lib/desk")]
    # What the rights of these users forbid is forbidden to the halves: they are those users.
    for user, what in (("desk", "/var/lib/dbguard/machine.key"), ("desk", "/var/lib/dbguard/store/repo.json"),
                       ("desk", "/var/lib/dbguard/catalog.db"), ("dbguard", path)):  # fmt: skip
        assert machine.run("ls", what).status == 0
        assert "Permission denied" in machine.run("cat", what, user=user, check=False).err, (user, what)
    machine.run("rm", "/etc/dbguard/conf.d/desk.toml")
    machine.does("reload")


@trees.ONE_SUITE
def test_without_capabilities_the_daemon_says_what_is_missing(machine, shop):
    drop_in = machine.put("[Service]\nCapabilityBoundingSet=\nAmbientCapabilities=\n",
                          "/run/systemd/system/dbguardd.service.d/bare.conf")  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "dbguardd")
    try:
        said = machine.ctl("--json", "backup", "shop")
        problem = said.problem()
        assert problem["code"] == "DBG-2007", said
        assert "dbguardd runs as dbguard and without CAP_SETUID" in problem["detail"]
        assert "systemctl cat dbguardd" in problem["hints"]
    finally:
        machine.run("rm", drop_in)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "dbguardd")
    assert machine.does("backup", "shop")["proof"]["grade"] == "proven"
