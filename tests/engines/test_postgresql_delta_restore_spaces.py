"""A cluster is restored over one whose tablespaces are others than then, and the undo brings these back."""

import os
import shutil
import signal

import pytest
from postgres_pages_world import shop
from postgres_world import as_owner, owner
from test_postgresql_delta_restore import backed_up, keep, overwritten

from dbguardd.engines.postgresql.fresh import together
from dbguardd.errors import TargetExists


def _came_went_and_moved(live):
    places = [live.place / name for name in ("gone", "newer", "further")]
    for place in places:
        place.mkdir()
        os.chown(place, owner(), -1)
    gone, newer, further = places
    live.sql(f"CREATE TABLESPACE gone LOCATION '{gone}'")
    live.sql("CREATE TABLE in_gone TABLESPACE gone AS SELECT generate_series(1, 1000) AS n", "shop")
    streams, facts, taken = as_owner(backed_up, live)
    live.sql("DROP TABLE in_gone", "shop")
    live.sql("DROP TABLESPACE gone")
    live.sql(f"CREATE TABLESPACE newer LOCATION '{newer}'")
    live.sql("CREATE TABLE in_newer TABLESPACE newer AS SELECT generate_series(1, 2000) AS n", "shop")
    live.stop(signal.SIGINT)
    link = next(path for path in (live.data / "pg_tblspc").iterdir() if os.readlink(path) == str(live.place / "far"))
    for path in (live.place / "far").iterdir():
        shutil.move(path, further)
    link.unlink()
    link.symlink_to(further)
    safe = as_owner(keep, live, facts)
    found = as_owner(overwritten, live, streams, facts)
    assert found.ok and found.fingerprint == taken
    assert list(newer.iterdir()) == [] and os.readlink(link) == str(further)
    live.start()
    assert live.sql("SELECT count(*), (SELECT count(*) FROM afar) FROM in_gone", "shop") == "1000|500"
    live.sql(f"CREATE TABLESPACE again LOCATION '{newer}'")  # at a place that the undo needs
    live.sql("CREATE TABLE in_again TABLESPACE again AS SELECT 1 AS n", "shop")
    live.stop(signal.SIGINT)
    (gone / "of-others").touch()
    as_owner(overwritten, live, *safe)
    live.start()
    assert live.sql("SELECT count(*), (SELECT count(*) FROM afar) FROM in_newer", "shop") == "2000|500"
    assert live.sql("SELECT string_agg(spcname, ' ' ORDER BY 1) FROM pg_tablespace WHERE oid > 16383") == "far newer"
    assert [path.name for path in gone.iterdir()] == ["of-others"]
    live.stop(signal.SIGINT)
    with pytest.raises(TargetExists, match="in use") as refused:
        as_owner(overwritten, live, streams, facts)
    assert "not a tablespace of the existing cluster" in refused.value.detail


def test_tablespaces_that_came_went_and_moved_since_are_as_they_were_and_so_after_the_undo():
    with shop() as live:
        _came_went_and_moved(live)


def test_directories_appear_together_or_none_does(tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with pytest.raises(TargetExists), together([one, two, three]) as made:
        for work in made:
            (work / "file").touch()
        two.mkdir()
        (two / "of-others").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["two", "two/of-others"]
    with together([one, three]) as (first, _):
        (first / "file").touch()
    assert sorted(os.listdir(tmp_path)) == ["one", "three", "two"] and (one / "file").exists()
