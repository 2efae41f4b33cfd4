"""The rows in a text of pg_dump are counted, whatever the bodies, names and comments around them look like."""

import io

import pytest

from dbguardd.engines.postgresql.questions.take_out import _copied

HEAD = b"SET standard_conforming_strings = on;\n\\restrict a$b$c\n"
ROWS = b'COPY public.t (a, "b\nc FROM stdin;") FROM stdin;\n1\t-- it\'s $$\n2\t"\n\\.\n\n'
LOOK_LIKE_ROWS = {
    "the body of a function": b"CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $_$\nCOPY t FROM stdin;\n' $$ \n$_$;\n",
    "a comment on a table": b"COMMENT ON TABLE t IS 'it''s\n FROM stdin;\n\"';\n",
    "the name of a column": b'ALTER TABLE t ADD "x\n FROM stdin;\n" int;\n',
    "the name of a role": b"-- Name: t; Type: TABLE; Schema: public; Owner: it's FROM stdin;\n--\n",
}


@pytest.mark.parametrize("sql", LOOK_LIKE_ROWS.values(), ids=LOOK_LIKE_ROWS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_only_rows_are_counted(sql: bytes, size: int) -> None:
    text, out = HEAD + ROWS + sql + ROWS, io.BytesIO()
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    assert _copied(pieces, out) == 4
    assert out.getvalue() == text
