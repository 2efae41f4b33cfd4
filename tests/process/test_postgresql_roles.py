"""Two servers of a cluster and a real daemon: whoever takes over, any moment comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.engines.postgres_pair_world import Pair, pair, promote, replayed
from tests.process.house import House, typed, until
from tests.process.test_postgresql_log import followed, numbers, restored


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    with pair() as made:
        yield made


def test_what_comes_back_is_typed_into_the_primary_wherever_the_url_names_it(
    house: House, both: Pair, request: pytest.FixtureRequest
) -> None:
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    one, two = both.servers
    one.sql("CREATE TABLE lost AS SELECT generate_series(1, 10) AS n")
    url = Pair(two, one).url
    house.protects(f'\n[database.cluster]\nengine = "postgresql"\nurl = "{url}"\nmethod = "pages"\nverify = "off"\n')
    house.start()
    house.does("backup", "cluster")
    one.sql("DROP TABLE lost")
    replayed(one, two)
    file = house.place / "lost.sql"
    house.does("get", "cluster", "--table", "lost", "--database", "postgres", "--to", str(file))
    typed(file.read_text().splitlines()[1].partition("run it: ")[2].removesuffix(" <THIS"), file.read_text())
    assert one.sql("SELECT count(*) FROM lost") == "10"


@pytest.mark.soak
def test_the_daemon_goes_on_with_the_server_that_takes_over(
    house: House, both: Pair, request: pytest.FixtureRequest
) -> None:
    """Also where its follower is killed just then; and the old server is never taken for the new one."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    one, two = both.servers
    one.sql("INSERT INTO ledger SELECT generate_series(1, 10), 'one'")
    settings = [f'url = "{both.url}"', 'method = "pages"', "continuous = true", 'verify = "off"']
    house.protects("\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""]))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    one.sql("INSERT INTO ledger SELECT generate_series(11, 20), 'one'")
    followed(house)
    replayed(one, two)
    follower = until(lambda: house.workers().get("engine"), "the follower")
    one.stop(signal.SIGQUIT)
    promote(two)
    with suppress(ProcessLookupError):
        os.kill(follower, signal.SIGKILL)
    two.sql("INSERT INTO ledger SELECT generate_series(21, 30), 'two'")
    until(lambda: house.events("log.turned"), house.log.read_text)
    until(lambda: len([row for row in house.jobs() if row["verb"] == "backup"]) == 3, house.jobs)
    followed(house)
    assert [event["continued"] for event in house.events("log.begun")][1:] == [True]
    target, _ = restored(house, "", "newest")
    assert numbers(one, target) == list(range(1, 31))
    one.start()  # nobody told it that it was lost
    said = house.ctl("backup", "cluster")
    assert said.status == 1 and "both accept writes" in said.err
    two.stop(signal.SIGINT)
    said = house.ctl("backup", "cluster")
    assert said.status == 1 and "left behind" in said.err
    assert "dbguardctl backup cluster --successor" in said.err
    house.does("backup", "cluster", "--successor")
