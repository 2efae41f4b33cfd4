"""Whatever workers report in whatever order: the index is what a simple model says, also after a restart."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.catalog import Catalog, to_text
from dbguardd.serialize import to_json
from dbguardd.states import Grade
from dbguardd.wire import EventRange
from tests.catalog.conftest import NOW, backup

EVENTS = ("stored", "graded", "expired", "recalled", "swept", "held", "released", "restart", "scan")
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5), st.sampled_from(list(Grade))), max_size=40)


@dataclass
class Known:
    """What the model knows of one backup."""

    grade: Grade = Grade.STORED
    expired: bool = False
    held: bool = False


@dataclass
class Model:
    """A dictionary that does what the catalog should."""

    backups: dict[str, Known] = field(default_factory=dict)

    def apply(self, event: str, id: str, grade: Grade) -> None:
        if event == "stored":
            held = id in self.backups and self.backups[id].held
            self.backups[id] = Known(held=held)
            return
        known = self.backups.get(id)
        if known is None:
            return
        match event:
            case "graded":
                known.grade = grade
            case "expired" | "recalled":
                known.expired = event == "expired"
            case "held" | "released":
                known.held = event == "held"
            case "swept":
                del self.backups[id]

    def visible(self) -> dict[str, tuple[Grade, list[str]]]:
        return {id: (b.grade, ["court"] if b.held else []) for id, b in self.backups.items() if not b.expired}


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_the_index_follows_the_reports(steps: list[tuple[str, int, Grade]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.db"
        catalog, model = Catalog.open(path), Model()
        catalog._session.rows("PRAGMA synchronous=OFF")
        for event, number, grade in steps:
            row = backup(number)
            if event == "restart":
                catalog.close()
                catalog = Catalog.open(path)
            elif event == "scan":  # the repository says the same as the model
                reports = [("backup.stored", to_json(backup(n))) for n in range(6) if backup(n).id in model.visible()]
                reports += [("backup.graded", {"id": id, "grade": seen[0]}) for id, seen in model.visible().items()]
                reports += [("backup.held", {"id": id, "reason": "court"}) for id, s in model.visible().items() if s[1]]
                catalog.replay("local", reports, NOW)
                model.backups = {id: known for id, known in model.backups.items() if not known.expired}
            elif row.id in model.backups or event == "stored":
                facts = to_json(row) if event == "stored" else {"id": row.id, "grade": grade, "reason": "court"}
                catalog.record(NOW, f"backup.{event}", "app", None, facts)
                model.apply(event, row.id, grade)
            seen = {found.id: (found.grade, found.holds) for found in catalog.backups.of("app")}
            assert seen == model.visible()
            summary = catalog.backups.summary("app")
            proven = [id for id, (reached, _) in model.visible().items() if reached is Grade.PROVEN]
            assert summary.count == len(seen)
            assert (summary.proven is None) == (not proven)
            assert summary.proven is None or summary.proven.id == max(proven)
        assert catalog.events.last_id() == sum(1 for _ in catalog.events.find(EventRange(), 1000))
        catalog.probe(NOW)
        assert catalog.settings.get("alive_at") == to_text(NOW)
        catalog.close()


def test_newest_is_what_was_made_last_whatever_the_clock_said(catalog: Catalog) -> None:
    ahead, last = backup(1, created_at="2027-09-12T07:00:00.000Z", kind="full"), backup(2, kind="full")
    for row in (ahead, last):
        catalog.record(NOW, "backup.stored", "app", None, to_json(row))
    for id, at in ((ahead.id, "2027-09-12T08:00:00Z"), (last.id, "2026-09-12T08:00:00Z")):
        catalog.record(NOW, "backup.graded", "app", None, {"id": id, "grade": "proven", "verified_at": at})
    failed = {"id": ahead.id, "grade": "stored", "failure": "rotten", "verified_at": "2026-09-12T09:00:00Z"}
    catalog.record(NOW, "backup.graded", "app", None, failed)
    summary = catalog.backups.summary("app")
    assert summary.newest and summary.proven and summary.newest.id == summary.proven.id == last.id
    assert summary.full_at == last.created_at
    assert [row.id for row in catalog.backups.of("app")] == [last.id, ahead.id]
    assert catalog.backups.of("app")[1].verified_at == "2026-09-12T09:00:00.000Z"
    assert [proof.failure for proof in catalog.proofs.of(ahead.id)] == ["rotten", None]
