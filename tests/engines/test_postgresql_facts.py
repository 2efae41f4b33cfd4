"""What is stored with a backup of a cluster: read as it was written, by every version since, or not at all."""

import pytest
from postgres_pages_world import FACTS

from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.errors import Damaged
from dbguardd.facts import BackupFacts

ENDS = {"round": "7/1", "position": 100}


def test_what_is_stored_is_read_again_and_others_find_in_it_what_they_look_for():
    stored = FACTS.stored()
    assert ClusterFacts.read(stored) == FACTS and stored["recovery_lsn"] == "1/200"
    said = BackupFacts.read(stored)
    assert (said.log_position, said.owner, said.directory) == (FACTS.log_place, FACTS.owner, FACTS.directory)
    assert (said.system, said.timeline, said.tablespaces) == (str(FACTS.system), 3, FACTS.tablespaces)


def test_a_backup_of_before_is_read_without_what_came_later():
    later = ("locks", "owner", "service", "directory", "fingerprint_form", "log_place", "tablespaces", "snapshots")
    found = ClusterFacts.read({name: value for name, value in FACTS.stored().items() if name not in later})
    assert (found.locks, found.service, found.log_place, dict(found.tablespaces)) == (0, "", None, {})
    assert not found.resting and found.moment is None and found.recovery_record_bytes is None


@pytest.mark.parametrize(
    "told",
    [
        {"major": "many"},
        {"major": None},
        {"recovery_lsn": "here"},
        {"tablespaces": {"../..": ["fast", "/srv"]}},
        {"tablespaces": {"1": ["fast"]}},
        {"tablespaces": ["1"]},
        {"snapshots": "shop"},
        {"moment": {"stream": "log", "since": ENDS, "target": {}}},
        {"moment": {"stream": "log", "since": ENDS, "until": ENDS, "target": {"when": "now"}}},
    ],
)
def test_what_is_not_of_its_kind_is_damage_before_anything_is_written(told):
    with pytest.raises(Damaged) as caught:
        ClusterFacts.read({**FACTS.stored(), **told})
    assert ("log" in caught.value.facts) == ("moment" in told)


def test_a_backup_that_lacks_what_a_restore_needs_is_damaged():
    with pytest.raises(Damaged, match="does not say"):
        ClusterFacts.read({name: value for name, value in FACTS.stored().items() if name != "timeline"})
