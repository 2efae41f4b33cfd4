"""The daemon's memory: the catalog, which can be rebuilt, and the audit log, which is append-only."""

from dbguardd.catalog.audit import Audit, Entry, Who
from dbguardd.catalog.backups import Summary
from dbguardd.catalog.marks import HoldRow, ProofRow
from dbguardd.catalog.state import Pause, Run
from dbguardd.catalog.store import Catalog
from dbguardd.catalog.times import to_moment, to_text

__all__ = [
    "Audit",
    "Catalog",
    "Entry",
    "HoldRow",
    "Pause",
    "ProofRow",
    "Run",
    "Summary",
    "Who",
    "to_moment",
    "to_text",
]
