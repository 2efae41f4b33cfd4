"""Power cuts: every state that the disk may be in after each system call of publishing, and mutants that must fail."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.publish_states import Disk, Make, Op, Recorder, Sync, cut_power_everywhere, live

BIG, SMALL, OTHER = b"big " * 2000, b"small", b"other"
WORK: list[tuple[str, bytes | None]] = [("a/one", BIG), ("a/two", SMALL), ("top", OTHER), ("a/one", None), ("b/c", BIG)]
CONTENTS = {name: data for name, data in WORK if data is not None}


def record(tmp_path: Path, nameless: bool, work: Sequence[tuple[str, bytes | None]] = WORK) -> list[Op]:
    recorder = Recorder()
    assert live(recorder, tmp_path / "store", work, nameless=nameless)
    return recorder.ops


@pytest.mark.parametrize("nameless", [True, False])
def test_no_power_cut_tears_or_loses_anything(tmp_path: Path, nameless: bool) -> None:
    found = cut_power_everywhere(record(tmp_path, nameless), CONTENTS)
    assert (found.torn, found.lost) == (0, 0)
    assert found.states > 60


@pytest.mark.parametrize("nameless", [True, False])
def test_each_single_fsync_is_needed(tmp_path: Path, nameless: bool) -> None:
    ops = record(tmp_path, nameless)
    syncs = [place for place, op in enumerate(ops) if isinstance(op, Sync)]
    files = {op.node for op in ops if isinstance(op, Make) and not op.folder}
    assert len(syncs) >= 12
    for place in syncs:
        found = cut_power_everywhere([*ops[:place], *ops[place + 1 :]], CONTENTS)
        kind = found.torn if ops[place].node in files else found.lost  # type: ignore[union-attr]
        assert kind, f"nobody misses {ops[place]}, number {place} of {len(ops)}"


@pytest.mark.parametrize("nameless", [True, False])
def test_linking_before_the_fsync_would_tear(tmp_path: Path, nameless: bool) -> None:
    ops = record(tmp_path, nameless, WORK[:1])
    files = {op.node for op in ops if isinstance(op, Make) and not op.folder}
    place = next(place for place, op in enumerate(ops) if isinstance(op, Sync) and op.node in files)
    swapped = [*ops[:place], ops[place + 1], ops[place], *ops[place + 2 :]]
    assert cut_power_everywhere(swapped, CONTENTS).torn


@pytest.mark.parametrize("nameless", [True, False])
def test_killed_anywhere_then_begun_again_then_a_power_cut(tmp_path: Path, nameless: bool) -> None:
    """A killed process leaves entries that are not durable; the next one must not take them for granted."""
    parents_missed = states = 0
    for lives in range(1000):
        recorder = Recorder(lives=lives)
        root = tmp_path / f"{lives}"
        finished = live(recorder, root, WORK[:2], nameless=nameless)
        first = len(recorder.ops)
        recorder.lives = 1 << 30
        assert live(recorder, root, [*WORK[:2], WORK[4]], nameless=nameless)
        found = cut_power_everywhere(recorder.ops, CONTENTS)
        assert (found.torn, found.lost) == (0, 0), f"killed after {lives} calls"
        states += found.states
        # the mutant: trusting every directory that is there already
        folders = {op.node for op in recorder.ops[:first] if isinstance(op, Make) and op.folder}
        for place, op in enumerate(recorder.ops[first:], first):
            if isinstance(op, Sync) and op.node in folders | {0}:
                mutant = [*recorder.ops[:place], *recorder.ops[place + 1 :]]
                parents_missed += cut_power_everywhere(mutant, CONTENTS).lost > 0
        if finished:
            break
    assert lives > 10
    assert states > 1000
    assert parents_missed > 10


def test_the_model_itself_knows_what_a_power_cut_does() -> None:
    disk = Disk()
    for op in record_of_a_careless_program():
        disk.do(op)
    found = [sorted(state.items()) for state in disk.states()]
    assert [] in found
    assert [("f", b"")] in found
    assert [("f", b"\0\0\0\0")] in found
    assert [("f", b"da")] in found
    assert [("f", b"data")] in found


def record_of_a_careless_program() -> list[Op]:
    from tests.faults.publish_states import Link, Write

    return [Make(1, True), Link(0, "store", 1), Make(2, False), Write(2, b"data"), Link(1, "f", 2)]
