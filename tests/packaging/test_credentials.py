"""Credentials on a real host: set, given at the next start, used as a machine key, seen by nobody else."""

import pytest

from tests.packaging.applications import application
from tests.process.house import until

CANARY = "seven purple canaries over the hill"
POLICY = """
[key.sealed]
type = "machine"
credential = "sealed"

[key.words]
type = "passphrase"
secret = { credential = "words" }

[storage.second]
type = "directory"
path = "/var/lib/dbguard/second"

[storage.third]
type = "directory"
path = "/var/lib/dbguard/third"

[database.safe]
engine = "sqlite"
path = "/var/lib/safe/safe.db"
storage = ["second"]
key = "sealed"

[database.spoken]
engine = "sqlite"
path = "/var/lib/spoken/spoken.db"
storage = ["third"]
key = "words"
"""


@pytest.fixture(scope="module")
def sealed(machine):
    application(machine, "safe")
    application(machine, "spoken")
    assert "only root can" in machine.ctl("credential", "set", "words", user="safe", stdin=CANARY).err
    said = machine.ctl("credential", "set", "sealed", "--random")
    assert said.status == 0, said
    assert machine.ctl("credential", "set", "words", stdin=CANARY).status == 0
    machine.put(POLICY, "/etc/dbguard/conf.d/sealed.toml", owner="dbguard")
    machine.does("reload")
    yield machine
    for name in ("sealed", "words"):
        machine.ctl("credential", "rm", name, "--force")
    machine.run("rm", "/etc/dbguard/conf.d/sealed.toml")
    machine.run("systemctl", "restart", "dbguardd")
    machine.until_active()


def test_what_is_set_is_used_after_a_restart(sealed):
    machine = sealed
    before = {row["name"]: row for row in machine.does("credential", "list")["credentials"]}
    assert all(before[name]["needs_restart"] and not before[name]["given_at"] for name in ("sealed", "words"))
    said = machine.ctl("credential", "list").out
    assert "after a restart" in said and "systemctl restart dbguardd" in said
    problem = machine.ctl("--json", "backup", "safe").problem()
    assert (problem["code"], problem["hints"][-1]) == ("DBG-5002", "systemctl restart dbguardd")

    machine.run("systemctl", "restart", "dbguardd")
    for name in ("safe", "spoken"):
        assert machine.does("backup", name)["proof"]["grade"] == "proven"
    after = {row["name"]: row for row in machine.does("credential", "list")["credentials"]}
    assert not any(after[name]["needs_restart"] for name in ("sealed", "words"))
    assert after["sealed"]["used_by"] == ["key sealed"]
    assert machine.ctl("credential", "rm", "words").status == 10  # in use

    # Encrypted where it lies, and for root alone.
    stored = machine.path("/etc/credstore.encrypted/dbguard.words")
    assert CANARY.encode() not in stored.read_bytes()
    assert stored.stat().st_mode & 0o077 == 0
    assert machine.ctl("credential", "set", "words", stdin="other").status == 10
    journal = machine.run("journalctl", "--output=export", "--all", "--no-pager").out
    assert CANARY not in journal


def test_a_credential_that_is_gone_is_missed_by_its_jobs_only(sealed):
    machine = sealed
    machine.does("credential", "rm", "words", "--force")
    machine.run("systemctl", "restart", "dbguardd")
    machine.until_active()
    assert machine.ctl("--json", "backup", "spoken").problem()["code"] == "DBG-1004"
    assert machine.does("backup", "safe")["proof"]["grade"] == "proven"
    assert machine.ctl("credential", "set", "words", stdin=CANARY).status == 0
    machine.run("systemctl", "restart", "dbguardd")
    until(lambda: machine.does("backup", "spoken")["proof"]["grade"] == "proven", machine.why)
