"""What the living catalog says of a log is what one says that is rebuilt from the repository."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.catalog import Catalog, coverage
from dbguardd.daemon.inforce import states_of
from dbguardd.errors import GuardError, Unreachable
from dbguardd.flow import Images, Segment
from dbguardd.jobs.base import instant
from dbguardd.keys import MachineKey
from dbguardd.repository import Repository
from dbguardd.rules.coverage import TimeRange
from dbguardd.rules.coverage import coverage as covered
from tests.jobs.world import World
from tests.storage.layers import Recording

HOUR = 3600.0


class Living(World):
    """A world whose daemon listens: its catalog has heard everything, as it happened."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.spec["database"] |= {"continuous": True, "keep_log_seconds": 24 * HOUR, "keep": {"last": 3}}
        self.catalog = Catalog.open(place / "catalog.db")
        self.position, self.round, self.heard = 0, 0, 0

    def do(self, verb: str, **request: Any) -> dict[str, Any]:
        try:
            return super().do(verb, **request)
        finally:
            for event, facts in self.events[self.heard :]:
                self.hear(event, facts)
            self.heard = len(self.events)

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        if event != "reached":
            self.catalog.record(self.now, event, "app", "J", facts)
            return
        rows = coverage.read(self.catalog.settings, "app")
        row = coverage.Covered(facts["chain"], "", facts["until_at"])
        coverage.write(self.catalog.settings, "app", coverage.reached(rows, row))

    def here(self) -> dict[str, Any]:
        return {"round": f"r{self.round}", "position": self.position}

    def follow(self, count: int) -> None:
        """Store so many segments, a second apart."""

        def story(ship: Any, resume: Any) -> None:
            same = resume is not None and resume["round"] == f"r{self.round}"
            ship.begin(self.here(), continued=same, because="new")
            for _ in range(count):
                self.later(seconds=1)
                since, self.position = self.here(), self.position + 1
                ship.ship(Segment("main", since, self.here(), self.now, Images(512, 512, b"\0\0\0\1" + bytes(512))))
            ship.reached(self.now)

        self.engine.follow = story  # type: ignore[attr-defined]
        with pytest.raises(GuardError):
            self.do("follow")

    def base(self) -> None:
        self.engine.rights = {"log_place": self.here()}
        self.backup(users=[self.position])

    def says(self) -> list[TimeRange]:
        """Return what is covered, as the living catalog knows it."""
        return says(self.catalog)

    def scanned(self) -> list[TimeRange]:
        """Return what is covered, as an empty catalog learns it from the repository."""
        before = len(self.events)
        super().do("scan")
        with TemporaryDirectory(dir=self.place) as place:
            catalog = Catalog.open(Path(place) / "catalog.db")
            catalog.replay("local", self.events[before:], self.now)
            found = says(catalog)
            catalog.close()
        del self.events[before:]
        return found


def says(catalog: Catalog) -> list[TimeRange]:
    rows = coverage.read(catalog.settings, "app")
    return covered([row.logged() for row in rows], states_of(catalog.backups.of("app")))


STEPS = st.one_of(
    st.tuples(st.just("follow"), st.integers(1, 70)),
    st.tuples(st.just("later"), st.integers(1, 30)),
    st.tuples(st.sampled_from(["base", "gap", "expire"]), st.just(0)),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=12), st.sampled_from([[], [[60, HOUR]], [[60, HOUR], [3600, 4 * HOUR]]]))
def test_a_catalog_that_was_rebuilt_says_what_the_living_one_says(
    steps: list[tuple[str, int]], grains: list[list[float]]
) -> None:
    with TemporaryDirectory() as place:
        world = Living(Path(place))
        world.spec["database"]["thin_log"] = grains
        world.base()
        for step, number in steps:
            match step:
                case "follow":
                    world.follow(number)
                case "later":
                    world.later(hours=number)
                case "gap":
                    world.round += 1
                case "base":
                    world.base()
                case "expire":
                    world.do("expire", database="app")
            assert world.scanned() == world.says(), step
        world.catalog.close()


def test_a_log_is_covered_from_the_backup_on_that_its_beginning_was_forgotten_up_to(tmp_path: Path) -> None:
    """It lies within an object: by the name of that alone, the log would be there from the next backup on."""
    world = Living(tmp_path)
    world.base()  # the place of a log is made with the first backup
    world.follow(39)
    world.base()
    begins = world.now
    world.follow(40)  # and folded: the first object that is left has more than what goes on from the backup
    world.later(hours=36)
    world.do("expire", database="app")
    log = world.repository.log("app")
    assert log is not None
    first = log.chains()[0].pieces[0]
    assert 0 < first.first < 40 < first.last
    assert instant(begins) < instant(first.until)
    assert world.says() == world.scanned() == [TimeRange(begins, world.says()[0].until)]
    world.catalog.close()


class Lost(Recording):
    """A storage that goes away once something of a log was deleted."""

    def delete(self, name: str) -> None:
        super().delete(name)
        self._check()

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        self._check()
        return super().get(name, start, length)

    def _check(self) -> None:
        if any(call.verb == "delete" and "log" in call.name for call in self.calls):
            raise Unreachable("gone")


def test_what_was_forgotten_is_not_covered_although_the_storage_went_away_then(tmp_path: Path) -> None:
    world = Living(tmp_path)
    for _ in range(3):
        world.base()
        world.follow(40)
        world.later(hours=20)
    before, there = world.says(), world.repository
    world.repository = Repository.open(Lost(world.storage), [MachineKey.from_file(tmp_path / "key")])
    with pytest.raises(Unreachable, match="gone"):
        world.do("expire", database="app")
    world.repository = there
    assert world.says() == world.scanned() != before
    world.catalog.close()


def test_a_scan_reads_the_books_no_more_often_the_more_databases_there_are(tmp_path: Path) -> None:
    world, often = World(tmp_path), []
    for number in range(8):
        world.spec["database"]["name"] = f"app{number}"
        world.do("backup", database=f"app{number}")
        storage = Recording(world.storage)
        world.repository = Repository.open(storage, [MachineKey.from_file(tmp_path / "key")])
        world.do("scan")
        often.append(sum(call.verb == "get" and call.name.startswith("records/backup/") for call in storage.calls))
    assert often[-1] / 8 <= often[0]
