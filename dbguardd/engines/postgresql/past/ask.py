"""Answers one SELECT in a database of the past."""

from __future__ import annotations

from contextlib import suppress

from dbguardd.engines.postgresql.past.dumped import excluded
from dbguardd.engines.postgresql.past.reading import Meter, Reader, encoded, plain
from dbguardd.engines.postgresql.past.revive import Past
from dbguardd.engines.postgresql.past.tables import load, load_all
from dbguardd.errors import TooCostly, Usage
from dbguardd.flow import Facts

_CATCHING = """
SELECT 1 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE l.lanname NOT IN ('sql', 'internal', 'c') AND (l.lanname <> 'plpgsql' OR p.prosrc ~* 'exception.*when')
AND p.prorettype <> 'pg_catalog.trigger'::pg_catalog.regtype
"""
_CALLED = "SELECT funcid FROM pg_catalog.pg_stat_xact_user_functions"


def query(past: Past, sql: str, meter: Meter) -> Facts:
    """See engines.base.Past."""
    if past.dump is None:
        return _Asking(past, sql, meter).run()
    with past.reading() as connection:
        load(past, _understood(Reader(connection, meter), past, sql).about(), meter)
    if _goes_on_after_errors(past, sql, meter):
        load_all(past, meter)
        if left_out := past.dump.part.excluded:
            error = excluded(left_out)
            error.detail += " A function that is asked goes on after errors, and may take them for none."
            raise error
    asking = _Asking(past, sql, meter)
    try:
        return asking.run()
    except Usage:
        if not asking.again:
            raise
    load_all(past, meter)  # a function reads what is not there yet; which tables, it alone knows
    return asking.run()


def _goes_on_after_errors(past: Past, sql: str, meter: Meter) -> bool:
    """Say if a function is called that may take what it cannot read for nothing: then nobody hears that it could not.

    Where there is such a function it is tried, as far as the rows that would be shown.
    """
    with past.reading() as connection:
        if [*Reader(connection, meter).rows(_CATCHING)] == []:
            return False
    with past.reading() as connection, suppress(Usage, TooCostly):  # which are told when it is asked
        reader = Reader(connection, meter)
        reader.use_search_path()
        only = sql.rstrip().removesuffix(";")
        reader.understand(f"SELECT * FROM (\n{only}\n) AS tried LIMIT {meter.rows + 1}", sql)  # noqa: S608
        with meter.part():
            for _ in reader.run():
                pass
        return [*reader.rows(f"{_CATCHING} AND p.oid IN ({_CALLED})")] != []
    return False


class _Asking:
    """One statement whose answer is written once, however often it is tried before there is a row."""

    def __init__(self, past: Past, sql: str, meter: Meter) -> None:
        self._past, self._sql, self._meter = past, sql, meter
        self._headed = False
        self.again = False

    def run(self) -> Facts:
        """Write columns and rows. Raises Usage with `again` set if something was denied before there was a row."""
        meter, rows, more = self._meter, 0, None
        with self._past.reading() as connection:
            reader = _understood(Reader(connection, meter), self._past, self._sql)
            if not self._headed:
                meter.write(encoded([name for name, _ in reader.columns]))
                self._headed = True
            kinds = [kind for _, kind in reader.columns]
            try:
                for row in reader.run():
                    line = encoded([plain(value, kind) for value, kind in zip(row, kinds, strict=True)])
                    if rows >= meter.rows or not meter.fits(line):
                        more = "rows" if rows >= meter.rows else "bytes"
                        break
                    rows += 1
            except Usage:
                self.again = reader.denied and not rows
                raise
        return {"rows": rows, "more": more}


def _understood(reader: Reader, past: Past, sql: str) -> Reader:
    reader.use_search_path()
    reader.understand(sql, sql, past.lacking())
    return reader
