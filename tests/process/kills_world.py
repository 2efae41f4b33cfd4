"""A guarded cluster under a real daemon, every part of which is killed in every kind of work; and what must hold then.

Every job is asked for by a real dbguardctl. The moment is drawn over the measured duration of such a job, or shortly
after the part exists that is to be killed: some parts live for a moment only.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from dbguardd.verbs import staging_suffix
from dbguardd.worker.staging import staging_of
from tests.engines.postgres_world import Cluster, alive_processes, ended, owner
from tests.process.house import FINAL, House, until
from tests.process.kills_parts import (
    FOLLOWING,
    KINDS,
    PARTS,
    PUSHED,
    STOPPED,
    SUMS,
    Application,
    children,
    command,
    half_of,
    name,
    tree,
)
from tests.process.test_postgresql_log import answered, followed

LAST = 3
OF_DATA = ("DBG-2005", "DBG-2010", "DBG-3004", "DBG-4001", "DBG-6001")
"""Codes of damage, of a missing object, of a broken log and of a failed proof: no kill may be taken for one of them."""


class Yard:
    """One daemon, one cluster and one application through many kills."""

    def __init__(self, house: House, live: Cluster, seed: int, log: str = "true") -> None:
        self.house, self.live, self.dice, self.seed = house, live, random.Random(seed), seed
        self.slots = int(log == "true")
        self.books = Application(house.place, live)
        self.seconds = dict.fromkeys(KINDS, 2.0)
        self.struck: Counter[tuple[str, str]] = Counter()
        self.missed: Counter[tuple[str, str]] = Counter()
        self.ends: Counter[str] = Counter()
        self.back = house.place / "back"
        self.targets = self.interrupted = 0
        (there := house.place / "there").symlink_to(live.socket)  # by the same name a server is named once only
        common = ['engine = "postgresql"', 'verify = "off"', f"keep = {{ last = {LAST} }}"]
        pages = ["\n[database.cluster]", f'url = "{live.url}"', *common, 'method = "pages"', f"continuous = {log}", ""]
        url = live.url.replace(str(live.socket), str(there))
        dump = ["\n[database.dumped]", f'url = "{url}"', *common, 'method = "dump"', ""]
        house.protects("\n".join(pages), "\n".join(dump), more='grace = "0s"\n')

    def begin(self) -> None:
        """Make the tables and the first backups, and let the application write."""
        self.back.mkdir()
        os.chown(self.back, owner(), -1)
        self.live.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        self.live.sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 8) AS x FROM generate_series(1, 40000) n")
        self.live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; SELECT pg_reload_conf()")
        self.house.start()
        self.books.start()
        self.house.does("backup", "cluster")
        self.house.does("backup", "dumped")
        if not self.slots:
            (said,) = [
                row for row in self.house.does("check", "cluster")["findings"] if "archive_command = " in row["detail"]
            ]
            self.live.sql(said["detail"].partition("Fix: ")[2].split("; SELECT pg_reload")[0].rstrip(";"))
            self.live.sql("SELECT pg_reload_conf()")
        self.followed()

    def followed(self) -> None:
        """Wait until everything that was committed by now is stored."""
        if not self.slots:
            self.live.sql("SELECT pg_switch_wal()")
        followed(self.house)

    def end(self) -> None:
        """End the application, and the daemon, which must be sound."""
        self.books.stop()
        self.house.idle()
        self.house.is_sound()

    # ------------------------------------------------------------------------------------------------ the work

    def words(self, kind: str) -> list[str]:
        """Return what is typed for a kind of work."""
        ids = [row["id"] for row in self.house.backups("cluster")]
        named = ["--database", "postgres"]
        match kind:
            case "full":
                return ["backup", "cluster", "--full"]
            case "incremental" | "dump":
                return ["backup", "cluster" if kind == "incremental" else "dumped"]
            case "proof" | "proof of a dump":
                return ["verify", "cluster" if kind == "proof" else "dumped"]
            case "restore" | "restore of a dump":
                way = self.dice.choice([["--latest"], ["--id", self.dice.choice(ids)]])
                what = ["cluster", *way] if kind == "restore" else ["dumped"]
                return ["restore", *what, "--to", str(self.target())]
            case "prune":
                return ["prune", "cluster", "--confirm", "cluster"]
            case "in place":
                way = self.dice.choice([["--latest"], ["--id", self.dice.choice(ids)]])
                return ["restore", "cluster", *way, "--in-place", "--confirm", "cluster"]
            case "undo":
                return ["restore", "undo", "cluster", "--confirm", "cluster"]
        asked = [
            ["query", "cluster", *named, "SELECT count(*) FROM ledger"],
            ["query", "dumped", *named, "SELECT count(*) FROM ledger"],
            ["get", "cluster", *named, "--table", "bulk", "--to", str(self.house.place / f"{self.target().name}.sql")],
            ["diff", "cluster", *named, "--from", ids[-1], "--table", "ledger"],
            ["undelete", "cluster", *named, "--id", ids[-1], "--table", "ledger"],
        ]
        return self.dice.choice(asked)

    def target(self) -> Path:
        """Return a new place for a restore."""
        self.targets += 1
        return self.back / f"data-{self.targets}"

    @contextmanager
    def asked(self, kind: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Let a client ask for it, for the length of a block; yield the client, and the id of the job."""
        words = self.words(kind)
        before = {row["id"] for row in self.house.jobs()}
        with self.house.starting("--json", *words) as client:

            def job() -> str | None:
                new = [row["id"] for row in self.house.jobs() if row["id"] not in before and row["actor"] != "follower"]
                assert new or client.poll() is None, (words, client.communicate())
                return new[-1] if new else None

            yield client, str(until(job, words))

    # ------------------------------------------------------------------------------------------------ who is killed

    def present(self, part: str, client: subprocess.Popen[str] | None, others: set[int]) -> list[int]:
        """Return the processes that are that part now. `others` are workers that are not of the job."""
        process = self.house.process
        assert process is not None
        match part:
            case "client":
                return [client.pid] if client is not None and client.poll() is None else []
            case "daemon":
                return [process.pid]
            case "push":
                return alive_processes("dbguardctl", "push", str(self.house.state))
            case "session" | "postmaster" | "archiver":
                if self.live.process is None or self.live.process.poll() is not None:
                    return []
                served = children(self.live.process.pid) if part != "postmaster" else []
                if part == "archiver":
                    return [pid for pid in served if b"archiver" in command(pid)]
                ours = [pid for pid in served if b"[local]" in command(pid) or b"walsender" in command(pid)]
                return (ours if self.dice.random() < 0.8 else served) if served else [self.live.process.pid]
        halves = {pid: half_of(pid) for pid in children(process.pid) if pid not in others}
        if part in ("repository", "engine"):
            return [pid for pid, half in halves.items() if half == part]
        below = [one for pid, half in halves.items() if half == "engine" for one in tree(pid)[1:]]
        servers = [pid for pid in below if name(pid) == "postgres"]
        if part == "scratch":  # the server as a whole, or one process of it
            return servers[:1] if self.dice.random() < 0.5 else servers
        return [pid for pid in below if pid not in servers and name(pid) != "python3"]

    def aim(self, kind: str, part: str, find: Callable[[], list[int]], over: Callable[[], bool]) -> int:
        """Wait for a random moment; return who is to be killed then, 0 if it was over before."""
        moment = self.dice.random() * self.seconds[kind]
        if self.dice.random() < 0.5:
            while not find() and not over():
                time.sleep(0.005)
            moment = self.dice.choice([0.0, self.dice.random() * 0.2, moment / 2])
        time.sleep(moment)  # for nothing: the moment is meant to be random
        while not (found := find()) and not over():
            time.sleep(0.005)
        return self.dice.choice(found) if found else 0

    def kill(self, part: str, pid: int) -> None:
        """Kill it, and let the administrator start what does not start by itself."""
        self.note(part=part, victim=command(pid)[:80])
        if part == "daemon":
            below = tree(pid)[1:]
            self.house.kill()
            until(lambda: all(map(ended, below)), lambda: [command(one) for one in below if not ended(one)])
            self.house.start()
            self.interrupted = 0
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.interrupted += part in ("session", "postmaster", "archiver")
        if part == "postmaster":
            self.restart_server()
        elif part in ("session", "archiver"):
            self.answers()

    def restart_server(self) -> None:
        """Start a server whose first process was killed."""
        assert self.live.process is not None
        there = children(self.live.process.pid)
        self.live.process.wait()
        until(lambda: all(map(ended, there)), "the end of its processes")
        (self.live.data / "postmaster.pid").unlink(missing_ok=True)
        self.live.start()

    def answers(self) -> None:
        """Wait until the server answers: after a crash it recovers."""

        def asked() -> bool:
            with suppress(psycopg.Error), psycopg.connect(self.live.url) as db:
                return db.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
            return False

        until(asked, "an answer of the server")

    # ------------------------------------------------------------------------------------------------ one kill

    def strike(self, kind: str, part: str, tries: int = 5) -> None:
        """Kill that part in that kind of work, and see that all is well. It may be too late at first."""
        act = self._struck_following if kind in (*FOLLOWING, PUSHED) else self._struck_job
        for _ in range(tries):
            if act(kind, part):
                self.struck[kind, part] += 1
                return
            self.missed[kind, part] += 1

    def _struck_job(self, kind: str, part: str) -> bool:
        before = self._stop_server(kind) if kind in STOPPED else None
        others = set(children(self.house.process.pid)) if self.house.process and before is None else set()
        began = time.monotonic()
        with self.asked(kind) as (client, job):
            victim = self.aim(kind, part, lambda: self.present(part, client, others), lambda: self.is_over(job))
            below = [pid for one in children(self.house.process.pid) for pid in tree(one)] if self.house.process else []
            if victim:
                self.kill(part, victim)
            row = self.house.ended(job)
            if part != "client":
                until(lambda: client.poll() is not None, "the end of the client")
                same = (client.returncode in (0, 3)) == (row["state"] == "done")
                assert same or part == "daemon" or kind == "prune", row  # which is two jobs
        if not victim:
            self.seconds[kind] = (self.seconds[kind] + time.monotonic() - began) / 2
        self.ends[f"{kind}: {row['state']} {(row['problem'] or {}).get('code', '')}".strip()] += 1
        assert (row["problem"] or {}).get("code") not in OF_DATA, row
        self.house.idle()
        if before is not None:
            self._start_server(row, before)
        left = [pid for pid in below if pid not in children(self.house.process.pid) and not ended(pid)]  # type: ignore[union-attr]
        until(lambda: all(ended(pid) or self._is_follower(pid) for pid in left), lambda: list(map(command, left)))
        self.is_tidy(row)
        return bool(victim)

    def is_over(self, job: str) -> bool:
        return self.house.job(job)["state"] in FINAL

    def _struck_following(self, kind: str, part: str) -> bool:
        began = len(self.house.events("log.begun"))
        if kind == "turn":
            self.books.stop()
            self.live.stop(signal.SIGINT)
            (self.live.data / "standby.signal").touch()
            os.chown(self.live.data / "standby.signal", owner(), -1)
            self.live.start()
            self.live.sql("SELECT pg_promote()")
        else:
            self.live.sql("SELECT pg_switch_wal()")
        self.seconds[kind] = 1.0 if kind == PUSHED else 3.0
        victim = self.aim(kind, part, lambda: self.present(part, None, set()), lambda: False)
        self.kill(part, victim)
        self.interrupted += 1
        self.answers()
        if kind == "turn":
            self.books.start()
        self.is_tidy(None)
        said = [event for event in self.house.events("log.begun")[began:] if not event["continued"]]
        assert not said, said
        return True

    def _stop_server(self, kind: str) -> tuple[str, str]:
        """Stop the server, as who restores in place must; return its present state, and the one that comes back."""
        self.followed()
        self.books.stop()
        if kind == "undo":
            held = [row for row in self.house.backups("cluster") if "restore undo" in row["holds"]]
            if not held:  # there must be something to undo
                self._stop_for("in place")
        before = self.live.sql(SUMS)
        self.house.idle()
        self.live.stop(signal.SIGINT)
        return before, kind

    def _stop_for(self, kind: str) -> None:
        self.live.stop(signal.SIGINT)
        self.house.does(*self.words(kind))
        self.live.start()
        self.answers()
        self.followed()

    def _start_server(self, row: Any, before: tuple[str, str]) -> None:
        """Go on as the problem says; then the state is the old one, or the one that was to come back."""
        aside, (old, kind), whole = Path(f"{self.live.data}.in-restore"), before, ""
        assert self.live.data.exists() != aside.exists(), row
        if aside.exists():
            assert ".in-restore" in row["problem"]["detail"], row["problem"]
            (undo,) = [hint for hint in row["problem"]["hints"] if "restore undo" in hint]
            if self.dice.random() < 0.5 or kind == "undo":
                self.house.does(*undo.split()[1:])
                whole = old
            else:
                self.house.does(*self.words("in place"))
            assert not aside.exists()
        elif row["state"] != "done" and "restore undo" not in str(row["problem"]["hints"]):
            whole = old
        lock = self.live.data / "postmaster.pid"
        held = f"/proc/{lock.read_text().split()[0]}" if lock.exists() else ""
        until(lambda: not held or not Path(held).exists(), "the reaping of a killed half: a server takes it for alive")
        self.live.start()
        self.answers()
        now = self.live.sql(SUMS)
        self.note(kind=kind, job=row["id"], state=row["state"], before=old, expected=whole, now=now)
        assert now == whole or not whole, (row, now, whole)
        count, last, total = (int(part) for part in now.split("|"))
        assert count == last and total == sum(n % 700 for n in range(1, count + 1)), (row, now)
        self.books.went_back(count)
        self.books.start()

    # ------------------------------------------------------------------------------------------------ what must hold

    def _staging(self) -> str:
        return staging_of(str(self.house.state), "cluster", owner(), staging_suffix("follow", {}))

    def _is_follower(self, pid: int) -> bool:
        process = self.house.process
        return process is not None and pid in tree(process.pid)

    def is_tidy(self, row: Any) -> None:
        """Nothing of what was killed is left, and the log is followed without a gap."""
        if self.interrupted >= 2:  # the pauses until it is followed again become long
            self.house.stop()
            self.house.start()
            self.interrupted = 0
        self.followed()
        self.house.idle()
        staging, ours = self.house.state / "staging", self._staging()

        def left() -> list[Any]:
            places = [path for path in staging.iterdir() if str(path) != ours]
            return [*places, *(command(pid) for pid in alive_processes(str(staging)))]

        until(lambda: not left(), lambda: (row, left()))
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'dbguard|pg_dump'"
        until(lambda: int(self.live.sql(sessions)) <= 3, lambda: (row, self.live.sql("TABLE pg_stat_activity")))
        slots = "SELECT count(*) FILTER (WHERE temporary), count(*) FROM pg_replication_slots"
        until(
            lambda: self.live.sql(slots) == f"0|{self.slots}",
            lambda: (row, self.live.sql("TABLE pg_replication_slots")),
        )
        assert not list(self.live.place.glob("*.in-restore")), row
        self.nothing_is_lost()

    def nothing_is_lost(self) -> None:
        """What was acknowledged is there, except what made room for newer ones, or is no longer held."""
        released = {one["backup"] for one in self.house.events("backup.released")}
        for database in ("cluster", "dumped"):
            listed = [row["id"] for row in self.house.backups(database)]
            stored = {one["backup"] for one in self.house.events("backup.stored") if one["database"] == database}
            for lost in stored - set(listed) - released:
                newer = sum(id > lost for id in listed)
                assert newer >= LAST, f"seed {self.seed}: {lost} of {database} was acknowledged and is lost"

    def all_is_well(self) -> None:
        """Undisturbed, everything succeeds; every stored byte is right, and what was acknowledged is in a restore."""
        house = self.house
        made = house.does("backup", "cluster")
        assert made["backup"]["kind"] == "incremental", made
        house.does("backup", "dumped")
        self.followed()
        self.restored()
        checked = house.does("check", "cluster", "--data")
        failed = [row for row in checked["findings"] if row["outcome"] == "failed"]
        assert not [row for row in failed if not row["name"].startswith(("key ", "proof"))], failed
        house.idle()

    def restored(self) -> None:
        """Restore the newest moment: it has every commit that was acknowledged before. Nothing else lies beside it."""
        moment = datetime.fromisoformat(self.house.coverage("cluster")[-1]["until_at"])
        for left in self.back.glob(".*.dbguard"):
            until(lambda left=left: time.time() - left.stat().st_ctime > 1.1, "old enough to be left")  # type: ignore[misc]
        target = self.target()
        done = self.house.does("restore", "cluster", "--latest", "--to", str(target))
        assert {row["outcome"] for row in done["findings"]} <= {"ok", "not configured"}, done
        assert not list(self.back.glob(".*")), list(self.back.iterdir())
        sums = answered(self.live, target, SUMS)
        assert self.books.agrees(sums, moment), (self.seed, sums, moment, self.books.rows()[-3:])
        for path in self.back.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def story(self) -> str:
        """Return what happened to backups, log and jobs, for whoever looks for a cause."""
        wanted = re.compile(r'"event": "(log|backup|restore|job)\.|"kill"')
        return "\n".join(line[:700] for line in self.house.log.read_text().splitlines() if wanted.search(line))

    def note(self, **facts: Any) -> None:
        """Add a line of the test to the log of the daemon."""
        with self.house.log.open("a") as log:
            log.write(json.dumps({"event": "kill", "at": str(datetime.now(UTC)), **facts}, default=str) + "\n")

    def told(self) -> str:
        """Return what was killed how often, and how the jobs ended."""
        lines = [f"{kind:18}" + " ".join(f"{self.struck[kind, part]:11}" for part in PARTS) for kind in KINDS]
        ends = ", ".join(f"{count} {what}" for what, count in sorted(self.ends.items()))
        return "\n".join([" " * 18 + " ".join(f"{part:>11}" for part in PARTS), *lines, ends])
