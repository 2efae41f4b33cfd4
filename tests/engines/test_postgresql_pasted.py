"""The commands beside restored dumps, pasted into a shell."""

import re
import subprocess

from postgres_world import as_owner
from test_postgresql_dump import HOSTILE, live, place, round_trip

__all__ = ["live", "place"]


def pasted(live, place, text, lines):  # noqa: F811 - fixtures
    """Paste lines of the text beside the dumps into a shell; return what they print."""
    (server,) = re.findall(r"^export .*$", text, re.MULTILINE)
    environment = {"PATH": f"{live.programs}:/usr/bin:/bin", "PGUSER": "postgres"}
    done = subprocess.run(["bash", "-e"], input="\n".join([server, *lines]), cwd=place / "restored", env=environment,
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_text_beside_the_dumps_says_brings_them_back(live, place):  # noqa: F811 - fixtures
    as_owner(round_trip, live, place)
    text = (place / "restored/RESTORE.txt").read_text()
    commands = re.findall(r"^(?:createdb|pg_restore -d) .*(?:_restored'?|[0-9]\.dump)$", text, re.MULTILINE)
    assert len(commands) == 6
    try:
        pasted(live, place, text, commands)
        assert live.sql("SELECT count(*) FROM purchase", "shop_restored") == "1000"
        assert live.sql("SELECT count(*) FROM purchase", "shop") == "1000"
        there = """SELECT count(*) FROM "s.\n""x"."t;\r\n--\u00e9" """
        assert live.sql(f"SET client_encoding = 'UTF8'; {there}", f"{HOSTILE}_restored") == "4"
    finally:
        made = "SELECT quote_ident(datname) FROM pg_database WHERE datname LIKE '%restored'"
        for name in live.sql(made).splitlines():
            live.sql(f"DROP DATABASE {name}")


def test_nothing_of_the_text_beside_the_dumps_adds_rows_to_a_database_that_exists(live, place):  # noqa: F811 - fixtures
    """A table without a key would have them twice. Where the database is missing, the same lines make it."""
    live.sql("CREATE TABLE keyless AS SELECT 1 AS n", "shop")
    live.sql("CREATE TABLE keyless AS SELECT 1 AS n")
    try:
        as_owner(round_trip, live, place)
        text = (place / "restored/RESTORE.txt").read_text()
        own = re.findall("^(?:if .*|pg_restore -C .*|pg_restore -d postgres .*)$", text, re.MULTILINE)
        said = pasted(live, place, text, own)
        assert f"{HOSTILE} exists: nothing was restored\n" in said and "shop exists: nothing was restored\n" in said
        assert [live.sql("SELECT count(*) FROM keyless", name) for name in ("postgres", "shop")] == ["1", "1"]
        live.sql("ALTER DATABASE shop RENAME TO away")
        pasted(live, place, text, own)
        assert live.sql("SELECT count(*) FROM keyless", "shop") == "1"
        live.sql("DROP DATABASE shop")
        live.sql("ALTER DATABASE away RENAME TO shop")
    finally:
        live.sql("DROP TABLE keyless")
        live.sql("DROP TABLE keyless", "shop")
