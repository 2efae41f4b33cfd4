"""Every changed byte of the audit log is found, and a crash is told apart from a change."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dbguardd.catalog import Audit, Catalog, Entry, Who
from dbguardd.catalog.audit import Verified
from dbguardd.errors import AuditBroken, Degraded, SecondInstance
from tests.catalog.conftest import NOW

ALICE = Who("alice", 1000, 4711, "admin")


class Witness:
    def __init__(self) -> None:
        self.seen: list[Entry] = []

    def __call__(self, entry: Entry) -> None:
        self.seen.append(entry)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def opened(path: Path, catalog: Catalog) -> Audit:
    return Audit.open(path, catalog.settings, NOW, Witness())


def filled(path: Path, catalog: Catalog, count: int = 4) -> None:
    audit = opened(path, catalog)
    for number in range(count):
        audit.append(
            NOW, ALICE, action="backup.hold", object=f"b{number}", outcome="intent", facts={"why": "é\n\u202e"}
        )
    audit.close()


@pytest.fixture
def audit(path: Path, catalog: Catalog) -> Iterator[Audit]:
    filled(path, catalog)
    audit = opened(path, catalog)
    yield audit
    audit.close()


def test_entries_come_back_in_order_and_across_restarts(audit: Audit) -> None:
    assert [entry.seq for entry in audit.show(0, 100)] == [1, 2, 3, 4]
    assert [entry.seq for entry in audit.show(1, 2)] == [2, 3]
    assert [entry.seq for entry in audit.show(-1, 2)] == [3, 4]
    entry = audit.append(NOW, ALICE, action="x", object="y", outcome="done")
    assert (entry.seq, entry.actor, entry.at) == (5, ALICE, "2026-09-12T07:00:00.000Z")
    assert audit.verify() == Verified(5, entry.hash)


def test_each_entry_is_told_to_the_witness(path: Path, catalog: Catalog) -> None:
    witness = Witness()
    audit = Audit.open(path, catalog.settings, NOW, witness)
    entry = audit.append(NOW, ALICE, action="x", object="y", outcome="done")
    assert witness.seen == [entry]
    assert audit.head() == (1, entry.hash)
    audit.close()


def test_every_flipped_byte_is_found(audit: Audit, path: Path) -> None:
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(AuditBroken):
            audit.verify()
    path.write_bytes(data)
    audit.verify()


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_a_removed_line_is_found(audit: Audit, path: Path, gone: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for number, line in enumerate(lines) if number != gone))
    with pytest.raises(AuditBroken):
        audit.verify()


def test_swapped_repeated_and_foreign_lines_are_found(audit: Audit, path: Path) -> None:
    one, two, three, four = path.read_bytes().splitlines(keepends=True)
    for lines in ((one, three, two, four), (one, one, two, three, four), (one, two, three, four, b"{}\n"), ()):
        path.write_bytes(b"".join(lines))
        with pytest.raises(AuditBroken):
            audit.verify()


def test_a_log_written_anew_is_found_by_its_anchor(path: Path, catalog: Catalog, tmp_path: Path) -> None:
    filled(path, catalog)
    other = Catalog.open(tmp_path / "other.db")
    filled(tmp_path / "forged.jsonl", other, 6)
    other.close()
    forged = (tmp_path / "forged.jsonl").read_bytes()
    filled(tmp_path / "unused.jsonl", catalog, 0)
    path.write_bytes(forged.replace(b'"b3"', b'"b9"'))
    audit = opened(path, catalog)
    with pytest.raises(AuditBroken):
        audit.verify()
    audit.close()


def test_a_line_torn_by_a_crash_is_kept_as_a_note(path: Path, catalog: Catalog) -> None:
    filled(path, catalog)
    for length in (1, 10, 200):
        whole = path.read_bytes()
        torn = whole.splitlines()[-1][:length]
        path.write_bytes(whole + torn)
        audit = opened(path, catalog)
        audit.verify()
        [note] = audit.show(-1, 1)
        assert (note.action, note.facts["text"].encode()) == ("audit.repaired", torn)
        audit.close()


def test_an_entry_beyond_the_anchor_is_a_crash_and_no_break(path: Path, catalog: Catalog) -> None:
    filled(path, catalog, 3)
    anchor = catalog.settings.get("audit_head")
    filled(path, catalog, 1)
    assert anchor is not None
    catalog.settings.put("audit_head", anchor)  # the daemon died between the entry and its anchor
    audit = opened(path, catalog)
    assert audit.verify().entries == 4
    audit.close()


def test_a_truncated_log_stays_broken_for_ever(path: Path, catalog: Catalog) -> None:
    filled(path, catalog)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    for _ in range(2):
        audit = opened(path, catalog)
        audit.append(NOW, ALICE, action="x", object="y", outcome="done")
        with pytest.raises(AuditBroken, match="changed") as broken:
            audit.verify()
        assert "ends before entry 4" in broken.value.detail
        audit.close()


def test_a_removed_log_is_noticed(path: Path, catalog: Catalog) -> None:
    filled(path, catalog)
    path.unlink()
    audit = opened(path, catalog)
    with pytest.raises(AuditBroken):
        audit.verify()
    audit.close()


def test_a_log_whose_catalog_was_lost_says_so_and_goes_on(path: Path, catalog: Catalog, tmp_path: Path) -> None:
    filled(path, catalog)
    fresh = Catalog.open(tmp_path / "fresh.db")
    for _ in range(2):
        audit = opened(path, fresh)
        verified = audit.verify()
        assert verified.entries == 5
        [note] = verified.notes
        assert "anchor of the 4 entries before is lost" in note
        audit.close()
    fresh.close()


def test_one_writer(audit: Audit, path: Path, catalog: Catalog) -> None:
    with pytest.raises(SecondInstance):
        opened(path, catalog)


def test_the_log_is_private_and_no_link_is_followed(path: Path, catalog: Catalog, tmp_path: Path) -> None:
    filled(path, catalog)
    assert path.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with pytest.raises(Degraded):
        opened(link, catalog)


def test_a_long_log_resumes_at_its_end(path: Path, catalog: Catalog) -> None:
    audit = opened(path, catalog)
    with catalog.transaction():
        for number in range(300):
            audit.append(NOW, ALICE, action="a", object=str(number), outcome="done", facts={"pad": "x" * 4000})
    head = audit.head()
    audit.close()
    audit = opened(path, catalog)
    assert audit.head() == head
    assert (audit.verify().entries, audit.verify().head) == head
    audit.close()


def test_what_is_appended_while_another_thread_verifies_is_no_finding(audit: Audit) -> None:
    verification = audit.verification()
    entry = audit.append(NOW, ALICE, action="x", object="y", outcome="done")
    assert verification() == Verified(4, entry.prev)
    assert audit.verify() == Verified(5, entry.hash)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seq":"5",REST',
        b'{"seq":5,"hash":[],REST',
        b'{"seq":5,"facts":["finding"],REST',
        b'{"seq":5,"facts":{"a":NaN},REST',
        b'{"seq":5,"facts":{"a":' + b"[" * 900 + b"]" * 900 + b"},REST",
    ],
    ids=range(7),
)
def test_a_hostile_line_is_a_finding_and_nothing_fails_on_it(path: Path, catalog: Catalog, line: bytes) -> None:
    filled(path, catalog)
    who = b'"action":"audit.broken","actor":{"user":"x"},"at":"","object":"","outcome":""}'
    with path.open("ab") as file:
        file.write(line.replace(b"REST", who) + b"\n")
    audit = opened(path, catalog)
    assert [entry.seq for entry in audit.show(0, 4)] == [1, 2, 3, 4]
    with pytest.raises(AuditBroken) as caught:
        audit.verify()
    assert "line 5: " in caught.value.detail
    audit.close()
