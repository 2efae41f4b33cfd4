"""Takes one table out of a database of the past: as pg_dump writes it, for psql, or as CSV."""

from __future__ import annotations

from psycopg.conninfo import make_conninfo

from dbguardd.engines.postgresql.child import tool
from dbguardd.engines.postgresql.past.reading import Meter, Reader, said
from dbguardd.engines.postgresql.past.revive import Past
from dbguardd.engines.postgresql.past.tables import Table, known, tables
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import Degraded, SourceLocked, Unsupported, Usage
from dbguardd.flow import Facts

_PARTITIONS = (
    "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_partition_tree({}) AS t "
    "JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace"
)


def table(past: Past, reader: Reader, name: str, form: str, meter: Meter) -> Facts:
    """See engines.base.Past."""
    if form not in ("sql", "csv"):
        raise Usage(f"{meter.about}: a table comes as sql or csv, not as {form}")
    found = known(tables(reader), name, meter.about, reader)
    return _csv(reader, found, meter) if form == "csv" else _sql(past, reader, found, meter)


def _csv(reader: Reader, table: Table, meter: Meter) -> Facts:
    columns = ", ".join(one.quoted for one in table.columns)
    if not columns:
        raise Unsupported(f"{meter.about}: {table.quoted} has no column")
    what = f"(SELECT {columns} FROM {table.rows})" if table.whole else f"{table.quoted} ({columns})"  # noqa: S608
    lines = 0
    for line in reader.copy(f"COPY {what} TO STDOUT (FORMAT csv, HEADER)"):
        meter.write(line)
        lines += 1
    return {"rows": lines - 1, "triggers": 0}


def _sql(past: Past, reader: Reader, table: Table, meter: Meter) -> Facts:
    """Write all that the table is: it is alone when its rows come, so its triggers may be there afterwards."""
    wanted = [table.quoted]
    if table.whole:
        wanted = [said(one) for (one,) in reader.rows(_PARTITIONS.format(literal(table.quoted)))]
    ((rows,),) = reader.rows(f"SELECT count(*) FROM {table.rows}")  # noqa: S608 - names of the catalog
    tools = find_tools("pg_dump", past.server.tools.major, need="a table is written by it")
    encoding = ["--encoding=UTF8"] if reader.encoding == "UTF8" else []
    words = [tools.path("pg_dump"), "--no-password", f"--dbname={make_conninfo('', **past.address())}", *encoding]
    meter.write(remark(f"{table.quoted} of {meter.about}.", table, past.running(table.owner)))
    with tool([*words, *(f"--table={one}" for one in wanted)], keep=(past.server.place,)) as dump:
        while piece := dump.read(meter.alive):
            meter.write(piece)
        if dump.wait(meter.alive) != 0:
            words_of_it = dump.last_words()
            if "lock timeout" in words_of_it:
                raise SourceLocked(f"{meter.about}: {table.quoted} is locked by a prepared transaction")
            raise Degraded(f"{meter.about}: pg_dump cannot read {table.quoted}", detail=words_of_it[-500:])
    return {"rows": int(rows or 0), "triggers": 0}


def remark(what: str, table: Table, run: str) -> bytes:
    """Return the head of a text that psql runs: what it is, and as whom it should be run."""
    return (
        f"-- Made by dbguard: {one_line(what)}\n"
        f"-- Read it, then run it: {run} <THIS\n"
        f"-- As its owner ({one_line(table.owner)}): its checks and triggers run as who runs this. A hostile one can\n"
        "-- undo a SET ROLE: if that is to be feared, log in as the owner, by his password.\n"
    ).encode(errors="surrogateescape")


def one_line(name: str) -> str:
    """Return a name as it may stand in a remark."""
    return " ".join(name.split())


def literal(value: str) -> str:
    """Return an SQL string, for who has standard_conforming_strings on."""
    return "'" + value.replace("'", "''") + "'"
