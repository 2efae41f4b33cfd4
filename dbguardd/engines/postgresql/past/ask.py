"""Answers one SELECT in a database of the past."""

from __future__ import annotations

from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.past.reading import Meter, Reader, encoded, plain
from dbguardd.flow import Facts


def query(connection: Connection, sql: str, meter: Meter) -> Facts:
    """See engines.base.Past."""
    reader = Reader(connection, meter)
    reader.use_search_path()
    reader.understand(sql, sql)
    meter.write(encoded([name for name, _ in reader.columns]))
    kinds = [kind for _, kind in reader.columns]
    rows, more = 0, None
    for row in reader.run():
        line = encoded([plain(value, kind) for value, kind in zip(row, kinds, strict=True)])
        if rows >= meter.rows or not meter.fits(line):
            more = "rows" if rows >= meter.rows else "bytes"
            break
        rows += 1
    return {"rows": rows, "more": more}
