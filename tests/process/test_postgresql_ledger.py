"""A ledger of known sums over four timelines: any moment, place and name comes back to the very sum that it had."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tests.engines.postgres_pair_world import Pair, lose, pair, replayed, rewind, take_over
from tests.engines.postgres_world import Cluster
from tests.process.house import House, until
from tests.process.test_postgresql_log import answered, followed, restored

TARGETS, SEED = int(os.environ.get("LEDGER_TARGETS", "100")), int(os.environ.get("LEDGER_SEED", "5"))
STATE = "SELECT count(*), coalesce(max(id), 0), coalesce(sum(amount), 0), (SELECT balance FROM account) FROM book"
COMMIT = "WITH b AS (INSERT INTO book VALUES (%s, %s, %s)) UPDATE account SET balance = balance + %s RETURNING balance"


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """A transaction that was acknowledged: when, and all that the ledger had then. At its place, and under its name."""

    begun: datetime
    done: datetime
    state: str
    lsn: str = ""
    name: str = ""


@dataclass
class Era:
    """What was committed to one server, one after the other, from one state on."""

    entries: list[Entry] = field(default_factory=list)
    lost: int = 0  # so many of the last are in no history that goes on

    def at(self, moment: datetime) -> set[str]:
        """Return what the ledger may have been at a moment that lies within: one who was just committing may be in."""
        last = max(n for n, one in enumerate(self.entries) if one.done < moment)
        return {one.state for n, one in enumerate(self.entries) if n == last or (n > last and one.begun <= moment)}

    def kept(self) -> list[Entry]:
        """Return what goes on."""
        return self.entries[: len(self.entries) - self.lost]


class Ledger:
    """What writes, and knows what it wrote."""

    def __init__(self, dice: random.Random) -> None:
        self.eras, self._dice, self._names = list[Era](), dice, 0

    def begin(self, live: Cluster) -> None:
        """Go on with what a server has."""
        at, state = now(), live.sql(STATE)
        self.eras.append(Era([Entry(at, now(), state)]))

    def write(self, live: Cluster, count: int, *, lost: bool = False) -> None:
        """Commit so many transactions of random amounts; their sums are reckoned here, and not asked."""
        era = self.eras[-1]
        rows, last, total, balance = (int(part) for part in era.entries[-1].state.split("|"))
        with psycopg.connect(live.url, autocommit=True) as db:
            for _ in range(count):
                amount, begun = self._dice.randrange(-1000, 1000), now()
                rows, last, total = rows + 1, last + 1, total + amount
                (balance,) = self._row(db, COMMIT, last, amount, "x" * self._dice.randrange(700), amount)
                done = now()
                (lsn,) = self._row(db, "SELECT pg_current_wal_flush_lsn()::text")
                name = ""
                if self._dice.random() < 0.2:
                    self._names += 1
                    name = f"point {self._names}"
                    self._row(db, "SELECT pg_create_restore_point(%s)", name)
                assert balance == total
                era.entries.append(Entry(begun, done, f"{rows}|{last}|{total}|{balance}", lsn, name))
        era.lost += count if lost else 0

    @staticmethod
    def _row(db: psycopg.Connection[Any], query: str, *values: Any) -> Any:
        return db.execute(query.encode(), values or None).fetchone()

    def targets(self, count: int) -> Iterator[tuple[tuple[str, str], set[str]]]:
        """Yield random targets, and what may come back: one state only, but for a time at which one was committing."""
        for number in range(count):
            era = self._dice.choice(self.eras)
            match number % 4:
                case 2:
                    one = self._dice.choice([one for one in era.kept() if one.lsn])
                    yield ("--lsn", one.lsn), {one.state}
                case 3:
                    one = self._dice.choice([one for one in era.kept() if one.name])
                    yield ("--name", one.name), {one.state}
                case _:
                    first, last = era.entries[0].done, era.entries[-1].done
                    moment = first + (last - first) * (0.001 + 0.998 * self._dice.random())
                    yield ("--at", moment.isoformat()), era.at(moment)


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    with pair("--data-checksums") as made:
        made.servers[0].sql(
            "CREATE TABLE book (id int PRIMARY KEY, amount bigint, note text);"
            "CREATE TABLE account (balance bigint); INSERT INTO account VALUES (0)"
        )
        yield made


def turned(house: House, times: int) -> None:
    until(lambda: len(house.events("log.turned")) == times, house.log.read_text)
    followed(house)


@pytest.mark.soak
def test_any_target_comes_back_to_its_known_sum_across_timelines(
    house: House, both: Pair, request: pytest.FixtureRequest
) -> None:
    """Two servers are lost with what their successors lack, one comes back by pg_rewind, one is put back in place."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    dice = random.Random(SEED)
    (one, two), ledger = both.servers, Ledger(dice)
    settings = [f'url = "{both.url}"', 'method = "pages"', "continuous = true", 'verify = "off"']
    house.protects("\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""]))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    for number, (old, new) in enumerate(((one, two), (two, one)), 1):
        ledger.begin(old)
        ledger.write(old, 100)
        house.does("backup", "cluster")
        ledger.write(old, 100)
        replayed(old, new)
        new.stop(signal.SIGINT)
        ledger.write(old, 50, lost=True)
        followed(house)
        lose(old)
        take_over(new)
        turned(house, number)
        if number == 1:
            rewind(old, new)
    ledger.begin(one)
    ledger.write(one, 200)
    followed(house)
    back = dice.choice(ledger.eras[-1].entries[50:150])
    house.idle()
    one.stop(signal.SIGINT)
    house.does("restore", "cluster", "--in-place", "--confirm", "cluster", "--lsn", back.lsn)
    ledger.eras[-1].lost = len(ledger.eras[-1].entries) - ledger.eras[-1].entries.index(back) - 1
    one.start()
    until(lambda: one.sql("SELECT NOT pg_is_in_recovery()") == "t", "the end of its recovery")
    assert one.sql(STATE) == back.state
    followed(house)
    house.does("backup", "cluster")
    followed(house)
    ledger.begin(one)
    ledger.write(one, 200)
    followed(house)
    assert one.sql("SELECT timeline_id FROM pg_control_checkpoint()") == "4"
    wrong = list[Any]()
    for number, (way, states) in enumerate(ledger.targets(TARGETS)):
        target, _ = restored(house, "", str(number), *way)
        found = answered(one, target, STATE)
        if found not in states:
            wrong.append((way, found, states))
        shutil.rmtree(target.parent)
    assert not wrong, wrong
    house.idle()
    house.is_sound()
