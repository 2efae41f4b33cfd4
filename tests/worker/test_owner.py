"""As whom a database is opened: its owner, unless someone else's symbolic link leads there."""

import os
import pwd
import tempfile
from contextlib import suppress

import pytest

from dbguardd.errors import SourceDenied
from dbguardd.requests import NOWHERE
from dbguardd.worker.owner import explain_missing_setuid, owner_of
from dbguardd.worker.owner import owner_of_database as opens
from tests.engines.postgres_world import as_owner

APP, OTHER, ADMIN = 1001, 1002, 0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def theirs(tmp_path):
    """A database of OTHER, and a directory of APP beside it."""
    for name, owner in (("other", OTHER), ("app", APP)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.db").touch()
        os.chown(tmp_path / name, owner, owner)
        os.chown(tmp_path / name / "data.db", owner, owner)
    return tmp_path


def link(place, target, owner):
    place.symlink_to(target)
    os.chown(place, owner, owner, follow_symlinks=False)
    return place


def test_the_owner_of_the_file_opens_it(theirs):
    assert owner_of(theirs / "app" / "data.db") == APP
    assert owner_of(theirs / "app") == APP
    with pytest.raises(FileNotFoundError):
        owner_of(theirs / "app" / "gone.db")


@pytest.mark.parametrize("owner", [ADMIN, OTHER])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_of_the_administrator_or_of_the_owner_is_followed(theirs, owner, relative):
    link(theirs / "app" / "way", "../other/../other" if relative else theirs / "other", owner)
    assert owner_of(theirs / "app" / "way" / "data.db") == OTHER


@pytest.mark.parametrize("last", [False, True])
def test_a_link_of_a_third_person_lends_nobody_the_rights_of_the_owner(theirs, last):
    if last:
        path = link(theirs / "app" / "app.db", theirs / "other" / "data.db", APP)
    else:
        path = link(theirs / "app" / "way", theirs / "other", APP) / "data.db"
    with pytest.raises(SourceDenied) as caught:
        owner_of(path)
    assert "run_as" in caught.value.hints[0]


def test_links_in_a_circle_end(theirs):
    link(theirs / "a", "b", ADMIN)
    link(theirs / "b", "a", ADMIN)
    with pytest.raises(OSError, match="symbolic"):
        owner_of(theirs / "a")


def test_what_only_has_backups_is_restored_by_the_owner_of_the_place_and_never_as_root(theirs):
    spec = {"place": NOWHERE, "run_as": None}
    assert opens(spec, {"to": str(theirs / "app" / "back.db")}) == APP
    os.chown(theirs, 1003, 1003)
    assert opens(spec, {"to": str(theirs / "back.db")}) == 1003
    assert opens({**spec, "run_as": OTHER}, {"to": str(theirs / "app" / "back.db")}) == OTHER
    assert opens(spec, {"to": "/back.db"}) == opens(spec, {}) == os.geteuid()
    server = {**spec, "engine": "postgresql"}  # which never runs as root
    assert opens(server, {"to": str(theirs / "app" / "back")}) == APP
    with suppress(KeyError):
        usual = pwd.getpwnam("postgres").pw_uid
        assert opens(server, {"to": "/back"}) == opens(server, {}) == usual


def test_only_who_is_not_the_owner_is_told_that_he_cannot_become_it():
    """A server refuses a role, whoever we are: it was said to be for want of CAP_SETUID."""

    def told():
        mine = tempfile.mkdtemp(dir="/tmp")
        places = {"mine": mine, "of root": "/usr", "elsewhere": None}
        denied = {name: SourceDenied("refused") for name in places}
        for name, place in places.items():
            explain_missing_setuid(denied[name], {"database": {"place": place}})
        os.rmdir(mine)
        return [name for name, error in denied.items() if "CAP_SETUID" in error.detail]

    assert as_owner(told) == ["of root"]
