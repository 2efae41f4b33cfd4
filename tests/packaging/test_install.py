"""The package as an administrator meets it: installed, watched, upgraded, removed, purged."""

import json
import re
import shutil

import pytest

from tests.packaging import build, trees
from tests.packaging.applications import application, count, held
from tests.process.house import until

EXPOSURE = 1.6  # of `systemd-analyze security`; the unit says what is behind it
POLICY = """
[database.{name}]
engine = "sqlite"
path = "/var/lib/{name}/{name}.db"
lock_timeout = "1h"
verify = "off"
missed = "skip"
"""


@pytest.fixture
def slow(machine):
    """A database whose backup waits for as long as a lock is held."""
    path = application(machine, "slow")
    machine.put(POLICY.format(name="slow"), "/etc/dbguard/conf.d/slow.toml", owner="dbguard")
    machine.does("reload")
    yield path
    machine.run("rm", "-f", "/etc/dbguard/conf.d/slow.toml")
    machine.ctl("reload")


def waiting(machine):
    """Start a backup that waits for the lock; return its id."""
    job = machine.ctl("backup", "slow", "--no-wait").out.strip()
    until(lambda: machine.job(job)["step"] == "snapshot", machine.why)
    return job


def repeated(machine, job):
    """The job ended with its daemon, and the next daemon has repeated it."""
    assert machine.job(job)["state"] == "interrupted"
    until(lambda: machine.does("list", "slow")["backups"], machine.why)
    assert machine.does("audit", "verify")["ok"]


def test_it_runs_idle_and_healthy_and_touches_nothing(machine):
    assert machine.show("ActiveState") == "active"
    assert machine.show("UnitFileState") == "enabled"
    assert not machine.does("config", "show")["policy"].get("database")
    assert machine.run("dbguardctl", "config", "check").status == 0
    machine.run("systemd-analyze", "verify", "--man=no", "dbguardd.service", "dbguardd.socket")
    for page in ("man1/dbguardctl.1", "man8/dbguardd.8", "man7/dbguard-recovery.7", "man5/dbguard.toml.5"):
        assert machine.path(f"/usr/share/man/{page}.gz").exists()
    for file in ("/usr/share/bash-completion/completions/dbguardctl", "/usr/share/dbguard/policy.schema.json",
                 "/usr/share/zsh/vendor-completions/_dbguardctl", "/usr/lib/systemd/catalog/dbguard.catalog",
                 "/usr/share/doc/dbguard/examples/one-application.toml"):  # fmt: skip
        assert machine.path(file).exists(), file


@trees.ONE_SUITE
def test_a_server_that_is_not_there_is_said_and_nothing_is_written(machine):
    """No PostgreSQL is installed on this machine, and the service has no network."""
    before = machine.run("ls", "/etc/dbguard/conf.d").out
    for url in ("postgresql:///", "postgresql://192.0.2.1/shop"):
        problem = machine.ctl("--json", "protect", url).problem()
        assert problem["code"] == "DBG-2011" and problem["hints"], problem
    assert "/run/postgresql/.s.PGSQL.5432" in machine.ctl("protect", "postgresql:///").err
    assert machine.run("ls", "/etc/dbguard/conf.d").out == before
    assert "postgresql" not in [row["engine"] for row in machine.does("status")["databases"]]


def test_the_sandbox_is_as_narrow_as_the_unit_says(machine):
    said = machine.run("systemd-analyze", "security", "--no-pager", "dbguardd.service").out
    (found,) = re.findall(r"Overall exposure level for dbguardd.service: ([0-9.]+)", said)
    assert float(found) <= EXPOSURE, said


@trees.ONE_SUITE
def test_reload_says_what_is_wrong_and_keeps_the_old_policy(machine):
    bad = machine.put("[database.x]\nengine = 'nosuch'\n", "/etc/dbguard/conf.d/bad.toml", owner="dbguard")
    said = machine.run("systemctl", "reload", "dbguardd", check=False)
    assert said.status != 0
    assert machine.show("ActiveState") == "active"
    assert "nosuch" in machine.why()
    machine.run("rm", bad)
    machine.run("systemctl", "reload", "dbguardd")


def test_killed_it_comes_back_and_repeats_what_it_was_doing(machine, slow):
    with held(machine, slow, "slow"):
        job = waiting(machine)
        before = machine.show("MainPID")
        machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "dbguardd")
        until(lambda: machine.show("MainPID") not in (before, "0"), machine.why)
        machine.until_active()
    repeated(machine, job)


@trees.ONE_SUITE
def test_hung_it_is_ended_by_the_watchdog_and_its_job_is_repeated(machine, slow):
    drop_in = machine.put("[Service]\nWatchdogSec=10\nTimeoutAbortSec=1\n",
                          "/run/systemd/system/dbguardd.service.d/impatient.conf")  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "dbguardd")
    try:
        with held(machine, slow, "slow"):
            job = waiting(machine)
            before = machine.show("MainPID")
            machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", "dbguardd")
            until(lambda: machine.show("MainPID") not in (before, "0"), machine.why)
            machine.until_active()
        repeated(machine, job)
        assert "watchdog" in machine.run("journalctl", "--unit=dbguardd", "--no-pager").out.lower()
    finally:
        machine.run("rm", drop_in)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "dbguardd")


@trees.ONE_SUITE
def test_the_journal_explains_errors(machine):
    machine.ctl("backup", "nosuch")
    machine.put(POLICY.format(name="missing"), "/etc/dbguard/conf.d/missing.toml", owner="dbguard")
    machine.does("reload")
    assert machine.ctl("backup", "missing").status != 0
    until(lambda: machine.journal("DBGUARD_DATABASE=missing", "DBGUARD_CODE=DBG-2001"), machine.why)
    said = machine.run("journalctl", "--catalog", "--no-pager", "DBGUARD_DATABASE=missing").out
    assert "missing: backup failed" in said
    assert "Database missing (DBG-2001)" in said
    machine.run("rm", "/etc/dbguard/conf.d/missing.toml")
    machine.does("reload")


@pytest.mark.soak
@pytest.mark.parametrize("suite", ["trixie"], indirect=True)  # whose lintian is the strictest
def test_lintian_has_nothing_against_it(suite, deb, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(deb, out)
    argv = ("lintian", "--allow-root", "--fail-on", "error,warning", f"/out/{deb.name}")
    done = build.in_build_tree(suite, build.wheels(suite), out, *argv, more=("lintian",))
    assert done.returncode == 0, done.stdout + done.stderr


# -------------------------------------------------------------------------------------------- the end, in this order


def test_upgraded_in_the_middle_of_a_backup(machine, deb, slow):
    with held(machine, slow, "slow"):
        job = waiting(machine)
        before = machine.show("MainPID")
        machine.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--reinstall",
                    f"/root/{deb.name}")  # fmt: skip
        machine.until_active()
        assert machine.show("MainPID") != before
    repeated(machine, job)


def test_removed_it_keeps_everything_and_purged_the_backups(machine, deb):
    path = application(machine, "kept")
    backup = machine.does("protect", path)["database"]
    assert backup == "kept"
    store = machine.path("/var/lib/dbguard/store")
    objects = sorted(file.name for file in store.rglob("*") if file.is_file())

    said = machine.run("apt-get", "remove", "--yes", "dbguard").out
    assert "the key that opens them" in said and "/var/lib/dbguard, /etc/dbguard" in said
    assert machine.run("systemctl", "is-active", "dbguardd", check=False).out.strip() in ("inactive", "unknown")
    assert not machine.path("/usr/lib/dbguard").exists()
    assert machine.path("/etc/dbguard/conf.d/kept.toml").exists()
    assert machine.path("/var/lib/dbguard/catalog.db").exists()

    said = machine.run("apt-get", "purge", "--yes", "dbguard").out
    assert "the backups were not deleted" in said and "rm -r /var/lib/dbguard" in said
    assert "making.lock" not in said and "staging.seed" not in said
    assert not machine.path("/etc/dbguard").exists()
    assert not machine.path("/var/lib/dbguard/catalog.db").exists()
    assert sorted(file.name for file in store.rglob("*") if file.is_file()) == objects
    assert machine.path("/var/lib/dbguard/machine.key").exists()

    # Installed again, it finds them.
    machine.install(deb)
    machine.until_active()
    until(lambda: "orphaned" in machine.ctl("status").out, machine.why)
    machine.does("protect", path, "--adopt", "kept")
    kinds = [row["kind"] for row in machine.does("list", "kept")["backups"]]
    assert kinds[0] == "incremental" and "full" in kinds, json.dumps(kinds)
    machine.does("restore", "kept", "--to", "/var/lib/kept/again.db")
    assert count(machine, "/var/lib/kept/again.db", user="kept") == 500
    machine.run("rm", "/etc/dbguard/conf.d/kept.toml")
    machine.does("reload")
