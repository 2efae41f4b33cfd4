"""What of a dump a statement needs beyond the tables that it names: only what runs knows that.

A function reads what it likes. It is denied what is not loaded, and whoever hears of that loads it and asks again. A
function that goes on after errors tells nobody, and may take what it cannot read for nothing. So where there is such a
function a statement is tried before it is asked; if one was called all is loaded, or there is no answer.
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
    """Have a statement understood as an application of the database has it. Raises Usage, with what was `typed`."""
    reader.use_search_path()
    reader.understand(statement, typed, past.lacking())
    return reader


def make_ready(past: ScratchServer, statement: str, typed: str, meter: Meter) -> None:
    """Have there what a statement is about, in which a person has `typed` something. Raises Usage, Unsupported."""
    if past.dump is None:
        return
    with past.reading() as connection:
        load(past, understood(Reader(connection, meter), past, statement, typed).about(), meter)
    if _goes_on_after_errors(past, statement, typed, meter):
        load_all(past, meter)
        if left_out := past.dump.part.excluded:
            error = excluded(left_out)
            error.detail += " A function that is asked goes on after errors, and may take them for none."
            raise error


def bring(past: ScratchServer, lacks: str, meter: Meter) -> bool:
    """Have there what a statement was denied (Reader.lacks); say if that has brought anything."""
    if past.dump is None or not lacks:
        return False
    return load_large(past, meter) if lacks == LARGE else load_all(past, meter)


def _goes_on_after_errors(past: ScratchServer, statement: str, typed: str, meter: Meter) -> bool:
    """Say if a function is called that may take what it cannot read for nothing: as far as the rows to be shown."""
    with past.reading() as connection:
        if [*Reader(connection, meter).rows(_CATCHING)] == []:
            return False
    with past.reading() as connection, suppress(Usage, TooCostly):  # which are told when it is asked
        reader = Reader(connection, meter)
        reader.use_search_path()
        only = statement.rstrip().removesuffix(";")
        reader.understand(f"SELECT * FROM (\n{only}\n) AS tried LIMIT {meter.rows + 1}", typed)  # noqa: S608
        with meter.part():
            for _ in reader.run():
                pass
        return [*reader.rows(f"{_CATCHING} AND p.oid IN ({_CALLED})")] != []
    return False
