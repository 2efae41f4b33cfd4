"""Debian's own PostgreSQL beside the package: protected as it comes, lost, brought back, stopped; and over the network.

No permission and no setting of the server is changed by hand, and what is typed is what was printed.
"""

import re

import pytest

from tests.packaging import trees
from tests.packaging.machine import booted
from tests.process.house import until

SHOP = """
CREATE ROLE seller LOGIN PASSWORD 'hunter2';
CREATE DATABASE shop OWNER seller;
\\c shop
CREATE EXTENSION pgcrypto;
SET ROLE seller;
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE purchase (id serial PRIMARY KEY, customer int REFERENCES customer, total numeric);
CREATE INDEX by_total ON purchase (total);
INSERT INTO customer SELECT n, 'customer ' || n FROM generate_series(1, 100) n;
INSERT INTO purchase (customer, total) SELECT 1 + n % 100, n FROM generate_series(1, 1000) n;
"""
LANDLOCK = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
PYTHON = "/usr/lib/dbguard/bin/python3"
CONFINE = "/usr/lib/dbguard/lib/python3*/site-packages/dbguardd/engines/postgresql/confine.py"
PROBE = """
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecReload=
ExecStart=
ExecStart=/bin/sh -c '{python} -I -S {confine} $$$$ 9 server 1 {place} /usr/bin/mkdir {file} || exit 1'
"""


@pytest.fixture(scope="module")
def machine(suite, deb, tmp_path_factory):
    """A machine with Debian's PostgreSQL and dbguard, both as they come but for one setting: nothing is tried twice."""
    with booted(trees.tree(suite, (*trees.MACHINE, "postgresql")), suite, tmp_path_factory.mktemp("server")) as machine:
        machine.install(deb)
        machine.until_active()
        machine.put("[defaults]\nretry = { times = 0 }\n", "/etc/dbguard/conf.d/once.toml", owner="dbguard")
        machine.does("reload")
        yield machine


@pytest.fixture(scope="module")
def shop(machine):
    """The server is protected, with a database that is worth it."""
    sql(machine, SHOP)
    before = rights(machine)
    said = machine.ctl("protect", "postgresql:///")
    assert said.status == 0, said
    assert rights(machine) == before
    return said.out


def sql(machine, text, database="postgres"):
    """Ask the server as its superuser; return what it says."""
    words = ("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database)
    return machine.run(*words, user="postgres", stdin=text).out.strip()


def rights(machine):
    """Who may do what with the directories of the server."""
    places = ("/run/postgresql", "/var/lib/postgresql", "/etc/postgresql")
    found = machine.run("find", *places, "-maxdepth", "3", "-printf", "%p %u %g %m\n").out
    return sorted(found.splitlines())


def row(machine, name="postgresql"):
    """The state of a database, as status has it."""
    (found,) = [row for row in machine.does("status")["databases"] if row["name"] == name]
    return found


def commands(text, database):
    """What the text of a restore says to type, by what it says that it is for."""
    found = {"": []}
    head, *parts = text.split("\n# Database ")
    (part,) = [part for part in parts if part.startswith(repr(database))]
    about = ""
    for line in (*head.splitlines()[3:], *part.splitlines()[1:]):
        if line.startswith("# "):
            about = line
        elif line:
            found.setdefault(about, []).append(line)
    return found


def test_protected_as_it_comes_it_is_safe(machine, shop):
    major = sql(machine, "SHOW server_version_num")[:2]
    assert f"found       PostgreSQL {major}." in shop and "2 databases" in shop and "opened as postgres" in shop
    assert "proven  postgresql can be restored" in shop
    assert (row(machine)["state"], row(machine)["backups"]) == ("safe", 1)
    named = {row["name"]: row for row in machine.does("check", "postgresql")["findings"]}
    for name in ("connection", "privileges", "programs for a test restore", "extensions for test restores"):
        assert named[name]["outcome"] == "ok", named
    assert named["backups by pages"]["detail"].endswith(f"/var/lib/postgresql/{major}/main")
    assert named["programs for a test restore"]["detail"].endswith(f"in /usr/lib/postgresql/{major}/bin")
    assert "already protected" in machine.ctl("protect", "postgresql:///?host=/var/run/postgresql").err


def is_whole(machine):
    """The table of the shop is back with all that it had, and can be used."""
    assert sql(machine, "SELECT count(*), sum(total) FROM purchase", "shop") == "1000|500500"
    assert sql(machine, "SELECT tableowner FROM pg_tables WHERE tablename = 'purchase'", "shop") == "seller"
    assert sql(machine, "SELECT count(*) FROM pg_indexes WHERE tablename = 'purchase'", "shop") == "2"
    sql(machine, "INSERT INTO purchase (customer, total) VALUES (1, 1)", "shop")  # its sequence goes on
    assert sql(machine, "DELETE FROM purchase WHERE id > 1000 RETURNING id", "shop") in ("1001", "1002")


def manual(machine, name, *options):
    """Restore; return what the text says that the answer names."""
    said = machine.ctl("restore", name, *options)
    assert said.status == 0, said
    (place,) = re.findall(r"/\S+/RESTORE\.txt", said.out)
    text = machine.run("cat", place).out
    assert "as root, first: su - postgres" in text
    return text


@trees.ONE_SUITE
def test_a_table_that_was_dropped_comes_back_by_what_the_restore_printed(machine, shop):
    """From a whole cluster, which Debian configures from elsewhere, and which starts beside the one that runs."""
    sql(machine, "DROP TABLE purchase", "shop")
    text = manual(machine, "postgresql", "--to", "/var/lib/postgresql/back")
    beside, _head, _instead = text.partition("# To replace the original")
    typed = [line for line in beside.splitlines() if not line.startswith("#")]
    typed = [line.replace("SCHEMA.TABLE", "public.purchase").replace("DATABASE", "shop") for line in typed]
    machine.run("su", "-", "postgres", stdin="\n".join(["set -e", *typed, ""]))
    is_whole(machine)


@trees.ONE_SUITE
def test_a_whole_server_comes_back_by_what_the_restore_printed(machine, shop):
    """All that came since is gone, the unit of the distribution runs what was restored, and the original is kept."""
    sql(machine, "CREATE TABLE since (n int)", "shop")
    text = manual(machine, "postgresql", "--to", "/var/lib/postgresql/instead")
    _beside, _head, instead = text.partition("# To replace the original")
    typed = [line for line in instead.splitlines()[1:] if not line.startswith("#")]
    machine.run("sh", "-e", stdin="\n".join([*typed, ""]))
    until(lambda: machine.run("pg_isready", check=False).status == 0, machine.why)
    is_whole(machine)
    directory = sql(machine, "SHOW data_directory")
    assert sql(machine, "SELECT to_regclass('since')", "shop") == ""
    assert machine.run("test", "-d", f"{directory}.before", "-a", "!", "-e", "/var/lib/postgresql/instead").status == 0
    assert machine.does("backup", "postgresql")["proof"]["grade"] == "proven"
    machine.run("rm", "-r", f"{directory}.before")


@trees.ONE_SUITE
def test_a_table_comes_back_from_a_dump_by_what_the_restore_printed(machine, shop):
    said = machine.ctl("protect", "postgresql:///shop", "--name", "alone")
    assert said.status == 0 and "proven  alone can be restored" in said.out, said
    sql(machine, "DROP TABLE purchase", "shop")
    told = commands(manual(machine, "alone", "--to", "/var/lib/postgresql/dumps"), "shop")
    typed = [line for about, lines in told.items() if "under its own name" not in about for line in lines]
    typed = [line.replace("SCHEMA.TABLE", "public.purchase") for line in typed]
    machine.run("su", "-", "postgres", stdin="\n".join([*typed, ""]))
    is_whole(machine)
    sql(machine, "DROP DATABASE shop_restored")
    machine.does("unprotect", "alone", "--confirm", "alone")


@trees.ONE_SUITE
def test_a_server_that_is_stopped_is_said_and_its_backups_are_of_use(machine, shop):
    machine.run("systemctl", "stop", "postgresql")
    try:
        said = machine.ctl("backup", "postgresql")
        assert said.status == 1 and "DBG-2011" in said.err and "pg_lsclusters" in said.err
        assert ".s.PGSQL.5432" in said.err and "Earlier backups are untouched" in said.err
        until(lambda: row(machine)["state"] == "failing", machine.why)
        assert machine.ctl("status").status == 3
        assert "Database server not reachable (DBG-2011)" in machine.run("journalctl", "-x", "--unit=dbguardd").out
        assert machine.ctl("verify", "postgresql").status == 0
    finally:
        machine.run("systemctl", "start", "postgresql")
    until(lambda: machine.run("pg_isready", check=False).status == 0, machine.why)
    assert machine.does("backup", "postgresql")["proof"]["grade"] == "proven"
    assert row(machine)["state"] == "safe"


@trees.ONE_SUITE
def test_over_the_network_only_as_the_manual_says(machine, shop):
    url = "postgresql://seller@localhost/shop"
    said = machine.ctl("protect", url)
    assert (
        said.status == 1 and "has network access only with a drop-in" in said.err and "man 5 dbguard.toml" in said.err
    )
    manual = machine.run("zcat", "/usr/share/man/man5/dbguard.toml.5.gz").out
    (drop_in,) = re.findall(r"\n(\[Service\]\n(?:[A-Z].*\n)*PrivateNetwork=no\n(?:[A-Z].*\n)*)", manual)
    place = machine.put(drop_in.replace("192.0.2.7", "localhost"),
                        "/etc/systemd/system/dbguardd.service.d/network.conf")  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "dbguardd")
    try:
        said = machine.ctl("protect", url)
        assert said.status == 1 and "DBG-2007" in said.err
        (passwords,) = re.findall(r"(/\S+/\.pgpass), of dbguard and with mode 0600", said.err)
        machine.put("localhost:5432:*:seller:hunter2\n", passwords, owner="dbguard", mode=0o600)
        said = machine.ctl("protect", url)
        assert said.status == 0 and "opened as dbguard" in said.out and "proven  shop can be restored" in said.out
        machine.does("unprotect", "shop", "--confirm", "shop")
    finally:
        machine.run("rm", place)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "dbguardd")
        machine.until_active()


def test_in_the_sandbox_of_the_unit_a_throw_away_server_can_still_be_confined(machine):
    """That the filter of system calls leaves out landlock(7) would not be seen: where it is missing, it is not used."""
    if int(machine.run("systemd-run", "--quiet", "--pipe", "--wait", "python3", "-c", LANDLOCK).out) < 1:
        pytest.skip("NOT RUN: the kernel of this host has no landlock")
    unit = machine.run("cat", "/usr/lib/systemd/system/dbguardd.service").out
    confine = machine.run("sh", "-c", f"echo {CONFINE}").out.strip()
    machine.put(unit, "/run/systemd/system/probe.service")
    place = "/var/lib/dbguard/staging/probe"
    machine.run("install", "-d", "-o", "dbguard", "-m", "0700", place)
    ended = {}
    for file in (f"{place}/inside", "/var/lib/dbguard/outside"):
        told = PROBE.format(python=PYTHON, confine=confine, place=place, file=file)
        machine.put(told, "/run/systemd/system/probe.service.d/probe.conf")
        machine.run("systemctl", "daemon-reload")
        ended[file] = machine.run("systemctl", "start", "probe.service", check=False).status == 0
    machine.run("rm", "-r", "/run/systemd/system/probe.service", "/run/systemd/system/probe.service.d", place)
    machine.run("systemctl", "reset-failed", "probe.service", check=False)
    machine.run("systemctl", "daemon-reload")
    assert ended == {f"{place}/inside": True, "/var/lib/dbguard/outside": False}
    assert "Permission denied" in machine.run("journalctl", "--unit=probe.service", "--no-pager").out
