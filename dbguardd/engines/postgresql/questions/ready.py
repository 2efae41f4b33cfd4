"""Loads what a statement needs from a dump beyond the tables it names, which only shows when it runs.

A function may read any table. If it is denied one that is not loaded, that is loaded and the statement retried. But a
function that catches errors tells nobody, and may take an unreadable table for an empty one. So if such functions exist
a statement is tried first; if one was called, everything is loaded, or there is no answer.
"""

from __future__ import annotations

from contextlib import suppress

from dbguardd.engines.postgresql.questions.dumped import excluded
from dbguardd.engines.postgresql.questions.reading import LARGE, Meter, Reader
from dbguardd.engines.postgresql.questions.scratch import ScratchServer
from dbguardd.engines.postgresql.questions.tables import load, load_all, load_large
from dbguardd.errors import TooCostly, Usage

_CATCHING = """
SELECT 1 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE l.lanname NOT IN ('sql', 'internal', 'c') AND (l.lanname <> 'plpgsql' OR p.prosrc ~* 'exception.*when')
AND p.prorettype <> 'pg_catalog.trigger'::pg_catalog.regtype
"""
_CALLED = "SELECT funcid FROM pg_catalog.pg_stat_xact_user_functions"


def understood(reader: Reader, past: ScratchServer, statement: str, typed: str) -> Reader:
    """Have a statement parsed with an application's search path. Raises Usage, with what was `typed`."""
    reader.use_search_path()
    reader.understand(statement, typed, past.lacking())
    return reader


def make_ready(past: ScratchServer, statement: str, typed: str, meter: Meter) -> None:
    """Load what a statement refers to, of which a person has `typed` a part. Raises Usage, Unsupported."""
    if past.dump is None:
        return
    with past.reading() as connection:
        load(past, understood(Reader(connection, meter), past, statement, typed).about(), meter)
    if _goes_on_after_errors(past, statement, typed, meter):
        load_all(past, meter)
        if left_out := past.dump.part.excluded:
            error = excluded(left_out)
            error.detail += "A function in the question continues after errors, and may treat them as no rows."
            raise error


def bring(past: ScratchServer, lacks: str, meter: Meter) -> bool:
    """Load what a statement was denied (Reader.lacks); return whether anything was loaded."""
    if past.dump is None or not lacks:
        return False
    return load_large(past, meter) if lacks == LARGE else load_all(past, meter)


def _goes_on_after_errors(past: ScratchServer, statement: str, typed: str, meter: Meter) -> bool:
    """Return whether a function is called that may ignore read errors, within the rows to be shown."""
    with past.reading() as connection:
        if [*Reader(connection, meter).rows(_CATCHING)] == []:
            return False
    with past.reading() as connection, suppress(Usage, TooCostly):  # they will be raised by the real run
        reader = Reader(connection, meter)
        reader.use_search_path()
        only = statement.rstrip().removesuffix(";")
        reader.understand(f"SELECT * FROM (\n{only}\n) AS tried LIMIT {meter.rows + 1}", typed)  # noqa: S608
        with meter.part():
            for _ in reader.run():
                pass
        return [*reader.rows(f"{_CATCHING} AND p.oid IN ({_CALLED})")] != []
    return False
