"""Extracts one table from a database of the past: as SQL written by pg_dump, for psql, or as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from psycopg.conninfo import make_conninfo

from dbguardd.engines.postgresql.child import tool
from dbguardd.engines.postgresql.connect import shown
from dbguardd.engines.postgresql.meaning import library_in, outcome
from dbguardd.engines.postgresql.questions.dumped import Dumped
from dbguardd.engines.postgresql.questions.reading import Meter, Reader, said
from dbguardd.engines.postgresql.questions.scratch import ScratchServer
from dbguardd.engines.postgresql.questions.tables import Table, known, literal, load, owned, tables, with_large
from dbguardd.engines.postgresql.sandbox import chosen
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import Degraded, SourceDamaged, SourceLocked, ToolMissing, Unsupported, Usage
from dbguardd.flow import Facts
from dbguardd.humanize import some

_ALL = ".*"
"""A name with this suffix means a schema."""
_SHOWN = 20
_COPY = b" FROM stdin;"
_TOKEN = re.compile(rb"--.*|[\"']|(?<![\w$])\$(?:[^\W\d]\w*)?\$| FROM stdin;$")
"""What changes the state within a line of SQL: a comment, the start of a quotation, or the end of a COPY statement."""
_ROW_END_BYTES = 16
"""How much of an unfinished row is kept: enough to tell whether it ends the rows. A row may have 1 GiB."""

_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1"
_PARTITIONS = (
    "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_partition_tree({}) AS t "
    "JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace"
)


def table(past: ScratchServer, reader: Reader, name: str, form: str, meter: Meter) -> Facts:
    """See engines.base.Questions."""
    if form not in ("sql", "csv"):
        raise Usage(f"{meter.about}: a table comes as sql or csv, not as {form}")
    if name.endswith(_ALL):
        return _schema(past, reader, name.removesuffix(_ALL), form, meter)
    found = known(tables(reader), name, meter.about, reader, past.lacking())
    large = with_large(past, reader, found.columns)
    if form == "csv":
        facts = _csv(past, reader, found, meter)
    else:
        mine = owned(past, found)
        meter.write(remark(f"{found.quoted} of {meter.about}.", mine, past.running(mine.owner)) + without_large(large))
        facts = _sql(reader, found, past, meter)
    return {**facts, "large_objects": large} if large else facts


def _schema(past: ScratchServer, reader: Reader, name: str, form: str, meter: Meter) -> Facts:
    """Write everything in a schema, including what is no table."""
    names = [said(one) for (one,) in reader.rows(_SCHEMAS)]
    if name not in names or form != "sql":
        what = f"no such schema: {name}" if name not in names else "a schema comes as sql only"
        raise Usage(f"{meter.about}: {what}", detail=f"Its schemas: {some(names, most=_SHOWN)}.")
    columns = [column for one in tables(reader).values() if one.schema == name for column in one.columns]
    large = without_large(with_large(past, reader, columns))
    meter.write(_head(f"all of the schema {one_line(name)} of {meter.about}.", past.running()) + large)
    if past.dump is None:
        quoted = '"' + name.replace('"', '""') + '"'
        return {"rows": _copied(_dumped(past, [f"--schema={quoted}"], meter), meter), "triggers": 0}
    ((told,),) = reader.rows(f"SELECT pg_catalog.quote_ident({literal(name)})")
    for table in past.dump.part.excluded:
        if table.startswith(f"{shown(told or b'')}."):
            meter.write(f"-- The policy left out the rows of {one_line(table)}.\n".encode())
    meter.write(b"CREATE SCHEMA IF NOT EXISTS " + (told or b"") + b";\n")
    words = [past.server.tools.path("pg_restore"), "--file=-", f"--schema={name}", str(past.dump.file)]
    return {"rows": _copied(_written(past, words, meter), meter), "triggers": 0}


def _csv(past: ScratchServer, reader: Reader, table: Table, meter: Meter) -> Facts:
    load(past, table.number, meter)
    columns = ", ".join(one.quoted for one in table.columns)
    if not columns:
        raise Unsupported(f"{meter.about}: {table.quoted} has no column")
    what = f"(SELECT {columns} FROM {table.rows})" if table.whole else f"{table.quoted} ({columns})"  # noqa: S608
    lines = 0
    for line in reader.copy(f"COPY {what} TO STDOUT (FORMAT csv, HEADER)"):
        meter.write(line)
        lines += 1
    return {"rows": lines - 1, "triggers": 0}


def _sql(reader: Reader, table: Table, past: ScratchServer, meter: Meter) -> Facts:
    """Write the whole definition of the table; its rows are inserted before its triggers are created."""
    if past.dump is not None:
        return _out_of_dump(past, past.dump, reader, table, meter)
    encoding = ["--encoding=UTF8"] if reader.encoding == "UTF8" else []
    return {"rows": _copied(_dumped(past, [*encoding, *_of(reader, table)], meter), meter), "triggers": 0}


def _of(reader: Reader, table: Table) -> list[str]:
    """Return the options of pg_dump for a table and its partitions."""
    wanted = [table.quoted]
    if table.whole:
        wanted = [said(one) for (one,) in reader.rows(_PARTITIONS.format(literal(table.quoted)))]
    return [f"--table={one}" for one in wanted]


def _dumped(past: ScratchServer, words: Sequence[str], meter: Meter) -> Iterator[bytes]:
    """Yield the output of pg_dump for the database."""
    tools = find_tools("pg_dump", past.server.tools.major, need="a table is written by it")
    yield from _written(past, [tools.path("pg_dump"), *words], meter, f"--dbname={make_conninfo('', **past.address())}")


def _written(past: ScratchServer, words: Sequence[str], meter: Meter, *more: str) -> Iterator[bytes]:
    with tool([*words, "--no-password", *more], keep=(past.server.place,)) as program:
        while piece := program.read(meter.alive):
            yield piece
        if program.wait(meter.alive) != 0:
            words_of_it = program.last_words()
            if "lock timeout" in words_of_it:
                raise SourceLocked(f"{meter.about}: a prepared transaction has locked it")
            if find := library_in(words_of_it):
                what = f"{meter.about}: it needs a library that is not on this host"
                raise ToolMissing(what, detail=words_of_it[-500:], hints=[find])
            kind = SourceDamaged if outcome(words_of_it) == "failed" else Degraded
            raise kind(f"{meter.about}: {Path(words[0]).name} cannot read it", detail=words_of_it[-500:])


def _out_of_dump(past: ScratchServer, dump: Dumped, reader: Reader, table: Table, meter: Meter) -> Facts:
    """Write the whole table: its definition from the restored database, and its rows straight from the dump.

    So no code of the table has run. Its owner will be whoever runs the text; privileges come last.
    """
    ours = ["--no-owner", "--no-privileges", *_of(reader, table)]
    lines, about = dump.taken(past.server, table.number, meter.alive)
    for piece in _dumped(past, ["--section=pre-data", "--section=data", *ours], meter):  # the tables are empty here
        meter.write(piece)
    rows = _copied(_restored(past, dump, lines, meter), meter)
    for piece in chain(_dumped(past, ["--section=post-data", *ours], meter), _restored(past, dump, about, meter)):
        meter.write(piece)
    return {"rows": rows, "triggers": 0}


def _restored(past: ScratchServer, dump: Dumped, lines: Sequence[str], meter: Meter) -> Iterator[bytes]:
    """Yield what pg_restore writes for these lines of the dump's list."""
    if lines:
        with chosen(past.server, lines) as use:
            words = [past.server.tools.path("pg_restore"), "--file=-", use, str(dump.file)]
            yield from _written(past, words, meter)


def _copied(pieces: Iterator[bytes], meter: Meter) -> int:
    """Write a text of pg_dump or pg_restore, which contains rows of tables, one per line; return the number of rows."""
    rows, rest, state = 0, b"", b""
    for piece in pieces:
        meter.write(piece)
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if state != _COPY:
                state = _state_after(line, state)
            elif line == b"\\.":
                state = b""
            else:
                rows += 1
        if state == _COPY:
            rest = rest[-_ROW_END_BYTES:]
    return rows


def _state_after(line: bytes, state: bytes) -> bytes:
    """Return the state after a line of SQL: _COPY if rows follow, what ends the open quotation, or b"" if none is open.

    The body of a function may contain a line that looks like a COPY. The programs write no block comments, and no
    backslash that changes the meaning of a quote.
    """
    at = 0
    while state != _COPY:
        if state:
            end = line.find(state, at)
            if end < 0:
                return state
            at = end + len(state)
        token = _TOKEN.search(line, at)
        if token is None or token[0].startswith(b"--"):
            return b""
        state, at = token[0], token.end()
    return state


def remark(what: str, table: Table, run: str) -> bytes:
    """Return the head of a text for psql: what it is, and as whom it should be run."""
    return _head(what, run) + (
        f"-- As its owner ({one_line(table.owner)}): its checks and triggers run as the user who runs this. A hostile\n"
        "-- one can undo a SET ROLE: to be safe, log in as the owner, with its password.\n"
    ).encode(errors="surrogateescape")


def without_large(columns: Sequence[str]) -> bytes:
    """Return the comment that large objects are missing from a text whose rows refer to some."""
    if not columns:
        return b""
    named = one_line(", ".join(columns))
    return f"-- Large objects are not in it, only their numbers: {named}. One comes by: SELECT lo_get(NUMBER)\n".encode(
        errors="surrogateescape"
    )


def _head(what: str, run: str) -> bytes:
    return f"-- Made by dbguard: {one_line(what)}\n-- Read it, then run it: {run} <THIS\n".encode(
        errors="surrogateescape"
    )


def one_line(name: str) -> str:
    """Return a name as it may stand in a comment."""
    return " ".join(name.split())
