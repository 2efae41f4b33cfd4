"""Engines: one module or package for each kind of database. This table lists all of them.

Each is imported when it is opened. So a missing driver is an error of that database only, and the repository half of a
worker, which needs the vocabulary in base.py, loads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbguardd.engines.base import Engine, OpenEngine


def _sqlite(settings: Mapping[str, Any]) -> Engine:
    from dbguardd.engines.sqlite import open_sqlite  # noqa: PLC0415

    return open_sqlite(settings)


def _postgresql(settings: Mapping[str, Any]) -> Engine:
    from dbguardd.engines.postgresql import open_postgresql  # noqa: PLC0415

    return open_postgresql(settings)


ENGINES: Mapping[str, OpenEngine] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
}
