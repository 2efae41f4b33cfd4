from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dbguardd.catalog import Catalog
from dbguardd.states import Grade
from dbguardd.wire import BackupRow

NOW = datetime(2026, 9, 12, 7, 0, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog.open(tmp_path / "catalog.db")
    yield catalog
    catalog.close()


def backup(number: int, database: str = "app", storage: str = "local", **changes: object) -> BackupRow:
    row = BackupRow(
        id=f"01J{number:023d}",
        database=database,
        engine="sqlite",
        created_at=f"2026-{1 + number // 600 % 12:02d}-{1 + number // 24 % 25:02d}T{number % 24:02d}:00:00.000Z",
        kind="incremental",
        method="pages",
        grade=Grade.STORED,
        source_bytes=1 << 30,
        stored_bytes=4096,
        storage=storage,
    )
    for name, value in changes.items():
        setattr(row, name, value)
    return row
