"""A PostgreSQL server and a real daemon: protect, prove, lose, get back; and what goes wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.engines.postgres_world import Cluster, alive_processes, cluster, ended, identity, owner
from tests.process.house import House, until
from tests.process.test_schedule import by_itself, daily, remembers

SHOP = """
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE purchase (id serial PRIMARY KEY, customer int REFERENCES customer, total numeric);
INSERT INTO customer SELECT n, 'customer ' || n FROM generate_series(1, 100) n;
INSERT INTO purchase (customer, total) SELECT 1 + n % 100, n FROM generate_series(1, 1000) n;
"""


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster() as made:
        made.sql("CREATE ROLE seller LOGIN PASSWORD 'x'; CREATE DATABASE shop")
        made.sql(SHOP, "shop")
        yield made


@pytest.fixture
def served(house: House, request: pytest.FixtureRequest) -> House:
    """A daemon whose workers can become the owner of the server."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    house.protects()
    house.start()
    return house


def place_for(house: House, name: str) -> Path:
    """Return a new place in a directory of the owner's."""
    folder = house.place / f"back-{name}"
    folder.mkdir()
    os.chown(folder, owner(), -1)
    return folder / "here"


def table(house: House, live: Cluster, *lines: str, url: str = "") -> str:
    return "\n".join(["\n[database.cluster]", 'engine = "postgresql"', f'url = "{url or live.url}"', *lines, ""])


@contextmanager
def locked(live: Cluster) -> Iterator[None]:
    """Hold a lock of the application's, so that a backup cannot end; the dump of another database takes a while."""
    live.sql("CREATE TABLE long AS SELECT repeat(md5(n::text), 40) x FROM generate_series(1, 300000) n")
    try:
        with psycopg.connect(live.url, dbname="shop") as db:
            db.execute("LOCK TABLE customer")
            yield
    finally:
        live.sql("DROP TABLE long")


def test_two_commands_protect_a_server_and_prove_it_and_what_is_lost_comes_back(served: House, live: Cluster) -> None:
    """Of a local server the pages are taken: what comes back is a cluster, which its own programs start."""
    plan = served.does("protect", live.url, "--dry-run")
    assert plan["engine"] == "postgresql" and f'url = "{live.url}"' in plan["text"]
    assert 'method = "pages"' in plan["text"]
    said = served.ctl("protect", live.url)
    assert said.status in (0, 3), said
    assert f"PostgreSQL {live.major}" in said.out and "proven" in said.out
    assert "dbguardctl restore postgresql" in said.out and "--in-place" not in said.out
    served.idle()
    status = served.status("postgresql")
    assert status["engine"] == "postgresql" and status["recoverable_to_at"] and status["state"] != "failing"

    live.sql("DROP TABLE purchase", "shop")
    target = place_for(served, "lost")
    done = served.does("restore", "postgresql", "--to", str(target))
    assert {row["outcome"] for row in done["findings"]} <= {"ok", "not configured"}
    beside = [f"-c unix_socket_directories={target.parent} -c port=6543"]
    control = [live.programs / "pg_ctl", "-D", target, "-w", "-l", target.parent / "log"]
    subprocess.run([*control, "-o", *beside, "start"], check=True, capture_output=True, cwd="/", **identity())
    try:
        words = [
            live.programs / "pg_dump",
            "-h",
            target.parent,
            "-p",
            "6543",
            "-U",
            "postgres",
            "-t",
            "purchase",
            "shop",
        ]
        table = subprocess.run(words, check=True, capture_output=True, text=True, cwd="/").stdout
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], check=True, capture_output=True, cwd="/", **identity())
    live.sql(table, "shop")
    assert live.sql("SELECT count(*), sum(total) FROM purchase", "shop") == "1000|500500"

    checked = served.does("check", "postgresql")
    named = {row["name"]: row["outcome"] for row in checked["findings"]}
    assert (named["connection"], named["privileges"], named["programs for a test restore"]) == ("ok", "ok", "ok")
    assert named["backups by pages"] == "ok"
    link = served.place / "sockets"
    link.symlink_to(live.socket)
    for same in (live.url, live.url + "&connect_timeout=9", live.url.replace(str(live.socket), str(link))):
        assert "already protected" in served.fails("DBG-0001", 2, "protect", same)["message"]

    said = served.ctl("unprotect", "postgresql", "--confirm", "postgresql").out
    assert "dbguardctl restore postgresql --to PLACE" in said
    target = place_for(served, "orphaned")
    done = served.does("restore", "postgresql", "--to", str(target))
    assert {row["outcome"] for row in done["findings"]} <= {"ok", "not configured"}
    assert (target.stat().st_uid, (target / "PG_VERSION").read_text()) == (owner(), f"{live.major}\n")
    assert served.does("verify", "postgresql")["proof"]["grade"] == "proven"
    checked = served.does("check", "postgresql")
    assert {row["name"]: row["outcome"] for row in checked["findings"]}["database"] == "not configured"
    served.idle()
    served.is_sound()


def test_a_scheduled_backup_spreads_its_checkpoint_and_one_that_is_asked_for_does_not(
    served: House, live: Cluster
) -> None:
    due = (daily(timedelta(hours=5)), 'missed = "run-once"', 'jitter = "0s"')
    served.protects(table(served, live, 'method = "pages"', 'verify = "off"', *due))
    served.does("reload")
    served.does("backup", "cluster")
    served.idle()
    asked = live.checkpoints[-1]
    served.stop()
    remembers(served, "cluster", timedelta(days=4))
    live.sql("CHECKPOINT")  # so that a spread one is soon done
    before = len(live.checkpoints)
    served.start()
    job = until(lambda: by_itself(served, "backup", "cluster"), served.jobs)[0]
    assert served.ended(job)["state"] == "done"
    assert (asked, live.checkpoints[before]) == ("immediate force wait", "force wait")


def test_a_second_backup_stores_what_has_changed_and_is_proven_by_the_policys_questions(
    served: House, live: Cluster
) -> None:
    queries = 'proof.queries = [{ sql = "SELECT count(*) FROM customer", min = 100, database = "shop" }]'
    served.protects(table(served, live, queries, 'exclude = ["shop.public.scratch", "shop.public.nothing"]'))
    served.does("reload")
    live.sql("CREATE TABLE scratch AS SELECT n FROM generate_series(1, 1000) n", "shop")
    live.sql("CREATE TABLE unchanged AS SELECT n, md5(n::text) FROM generate_series(1, 60000) n", "shop")
    live.sql('CREATE DATABASE "no way in" ALLOW_CONNECTIONS false')
    first = served.does("backup", "cluster")
    live.sql("INSERT INTO customer VALUES (101, 'one more') ON CONFLICT DO NOTHING", "shop")
    second = served.does("backup", "cluster")
    assert first["proof"]["grade"] == second["proof"]["grade"] == "proven"
    assert (first["backup"]["kind"], second["backup"]["kind"]) == ("full", "incremental")
    assert second["backup"]["stored_bytes"] < second["backup"]["source_bytes"] / 2
    asked = [row for row in second["proof"]["findings"] if row["name"].startswith("query: ")]
    assert [(row["outcome"], row["detail"]) for row in asked] == [("ok", "101")]
    assert any("left out by the policy" in row["detail"] for row in second["proof"]["findings"])
    reports = (served.ctl("list", "cluster"), served.ctl("status", "cluster"), served.ctl("status"))
    planned = ("restore", "cluster", "--to", str(place_for(served, "planned")), "--dry-run")
    reports += (served.ctl("show", second["backup"]["id"]), served.ctl(*planned))
    for said in reports:
        assert "rows of 1 " in said.out and "shop.public.scratch" in said.out, said.out
        assert "nothing of no way in" in said.out, said.out
    live.sql('DROP DATABASE "no way in"')
    live.sql("DROP TABLE unchanged", "shop")
    assert served.does("list", "cluster")["backups"][0]["excluded"] == ["shop.public.scratch"]
    named = ("cluster", "--database", "shop")
    assert served.does("query", *named, "SELECT count(*) FROM customer")["rows"] == [[101]]
    assert "leaves them out" in served.fails("DBG-2008", 2, "query", *named, "SELECT n FROM scratch")["message"]
    taken = served.place / "customer.sql"
    assert served.does("get", *named, "--table", "customer", "--to", str(taken))["rows"] == 101
    assert "COPY public.customer" in taken.read_text()
    served.idle()
    served.is_sound()


def test_what_this_engine_cannot_do_is_refused_in_words(served: House, live: Cluster) -> None:
    served.protects(table(served, live, 'verify = "off"'))
    served.does("reload")
    served.does("backup", "cluster")
    served.idle()
    refused = served.fails("DBG-2008", 2, "restore", "cluster", "--in-place")
    assert "not replaced" in refused["message"]
    other = live.url.replace("postgresql:///", "postgresql:///shop")
    assert served.fails("DBG-2008", 2, "protect", other, "--continuous")["hints"]
    served.idle()
    served.is_sound()


def test_wrong_inputs_are_told_apart_and_nothing_is_written(served: House, live: Cluster) -> None:
    wrong = {
        "DBG-2011": live.url.replace(str(live.port), "54399"),
        "DBG-2001": live.url.replace("postgresql:///", "postgresql:///absent"),
        "DBG-2007": live.url.replace("user=postgres", "user=nobody_known"),
        "DBG-2008": live.url.replace("user=postgres", "user=seller").replace("postgresql:///", "postgresql:///shop"),
        "DBG-0001": "postgresql://me:hunter2@localhost/x",
    }
    assert "nosuch" in served.fails("DBG-0001", 2, "protect", live.url + "&nosuch=1")["detail"]
    assert "kind of server" in served.fails("DBG-2008", 2, "protect", "mysql://localhost/shop")["message"]
    for code, url in wrong.items():
        problem = served.fails(code, 2 if code in ("DBG-0001", "DBG-2008") else 1, "protect", url)
        assert "hunter2" not in str(problem) and "dbguardctl protect postgresql:///" not in problem["hints"]
    assert not (served.place / "conf.d").exists() or list((served.place / "conf.d").iterdir()) == []
    served.protects(table(served, live, url=live.url + "&nosuch=1"))
    served.does("reload")
    assert "nosuch" in served.fails("DBG-1001", 9, "backup", "cluster")["detail"]
    served.idle()
    served.is_sound()


def test_a_stopped_server_is_seen_and_its_backups_can_be_restored(served: House) -> None:
    with cluster() as mine:
        mine.sql("CREATE TABLE t AS SELECT 1 AS n")
        served.protects(table(served, mine))
        served.does("reload")
        served.does("backup", "cluster")
        mine.stop(signal.SIGINT)
        problem = served.fails("DBG-2011", 1, "backup", "cluster")
        assert "cannot be reached" in problem["message"]
        status = until(
            lambda: (row := served.status("cluster"))["state"] == "failing" and row, lambda: served.status("cluster")
        )
        assert any("server is not running" in line for line in status["attention"])
        done = served.does("restore", "cluster", "--to", str(place_for(served, "stopped")))
        assert "RESTORE.txt" in os.listdir(done["target"])
    served.idle()
    served.is_sound()


@pytest.mark.parametrize("when", ["pg_dump", "postgres", "pg_restore"])
def test_a_killed_engine_half_leaves_no_program_and_no_server(served: House, live: Cluster, when: str) -> None:
    """At whatever it is: the dump, the throw-away server, the restore into it."""
    served.protects(table(served, live, 'verify = "off"', 'lock_timeout = "1h"'))
    served.does("reload")
    if when != "pg_dump":  # so that these too have work for a while
        live.sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 20) x FROM generate_series(1, 100000) n", "shop")
        served.does("backup", "cluster")
    verb, place = ("backup", live.socket) if when == "pg_dump" else ("verify", served.state / "staging")
    with locked(live) if when == "pg_dump" else nullcontext():
        job = served.submit(verb, "cluster")
        pids = until(lambda: alive_processes(when, str(place)), f"{when} of {job}")
        os.kill(until(lambda: served.workers().get("engine"), "the engine half"), signal.SIGKILL)
        row = served.ended(job)
    assert row["state"] == "failed", row
    until(lambda: all(ended(pid) for pid in pids), f"the end of {when}")
    until(lambda: not alive_processes(str(served.state / "staging")), "the end of all that works in staging")
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^(dbguard|pg_dump)'"
    until(lambda: live.sql(asked) == "0", "the end of its connections")
    live.sql("DROP TABLE IF EXISTS bulk", "shop")
    served.does(verb, "cluster")
    served.idle()
    served.is_sound()


def test_cancelling_ends_the_programs_at_once(served: House, live: Cluster) -> None:
    served.protects(table(served, live, 'lock_timeout = "1h"'))
    served.does("reload")
    with locked(live):
        job = served.submit("backup", "cluster", verify=True)
        until(lambda: alive_processes("--snapshot=", str(live.socket)), "a dump")
        served.does("job", "cancel", job)
        assert served.ended(job)["state"] == "cancelled"
    until(lambda: not alive_processes("--snapshot=", str(live.socket)), "the end of the dump")
    served.idle()
    served.is_sound()


def test_the_role_whose_sql_is_printed_reads_everything_and_nothing_else(served: House, live: Cluster) -> None:
    url = live.url.replace("user=postgres", "user=saver")
    live.sql("CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    live.sql(
        "CREATE SCHEMA own; CREATE TABLE own.ruled AS SELECT n FROM generate_series(1, 9) n; "
        "ALTER TABLE own.ruled ENABLE ROW LEVEL SECURITY",
        "closed",
    )
    try:
        said = served.ctl("init", "--sql", url)
        assert said.status == 0
        live.sql(said.out)
        may = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = 'saver'"
        assert live.sql(may) == "f|f|f|f"
        assert live.sql("SELECT string_agg(roleid::regrole::text, ' ') FROM pg_auth_members WHERE member = "
                        "'saver'::regrole") == "pg_read_all_data"  # fmt: skip
        served.protects(table(served, live, url=url))
        served.does("reload")
        done = served.does("backup", "cluster")
        assert done["proof"]["grade"] == "proven"
        checked = served.does("check", "cluster")
        assert {row["outcome"] for row in checked["findings"] if row["name"] in ("privileges", "connection")} == {"ok"}
        assert served.ctl("init", "--sql", url, "--policy", str(served.place / "p.toml")).status == 2
        assert served.ctl("init", "--sql", "/var/lib/app.db").status == 2
    finally:
        live.sql("DROP DATABASE closed")
