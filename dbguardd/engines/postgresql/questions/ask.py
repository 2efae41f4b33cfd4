"""Answers one SELECT in a database of the past."""

from __future__ import annotations

from dbguardd.engines.postgresql.questions.reading import Meter, Reader, encoded, plain
from dbguardd.engines.postgresql.questions.ready import bring, make_ready, understood
from dbguardd.engines.postgresql.questions.scratch import ScratchServer
from dbguardd.errors import Usage
from dbguardd.flow import Facts


def query(past: ScratchServer, sql: str, meter: Meter) -> Facts:
    """See engines.base.Questions."""
    make_ready(past, sql, sql, meter)
    asking = _Asking(past, sql, meter)
    while True:
        try:
            return asking.run()
        except Usage:
            if not bring(past, asking.lacks, meter):
                raise


class _Asking:
    """One statement. Its answer is written once, however often it is retried before the first row."""

    def __init__(self, past: ScratchServer, sql: str, meter: Meter) -> None:
        self._past, self._sql, self._meter = past, sql, meter
        self._headed = False
        self.lacks = ""

    def run(self) -> Facts:
        """Write columns and rows. Raises Usage; `lacks` then tells what was missing, if no row had come yet."""
        meter, rows, more = self._meter, 0, None
        with self._past.reading() as connection:
            reader = understood(Reader(connection, meter), self._past, self._sql, self._sql)
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
                self.lacks = "" if rows else reader.lacks
                raise
        return {"rows": rows, "more": more}
