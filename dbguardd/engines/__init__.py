"""Engines: one module or package for each kind of database. This table is all of them."""

from __future__ import annotations

from collections.abc import Mapping

from dbguardd.engines.base import OpenEngine
from dbguardd.engines.sqlite import open_sqlite

ENGINES: Mapping[str, OpenEngine] = {
    "sqlite": open_sqlite,
}
