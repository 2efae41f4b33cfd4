"""What a database uses and this host lacks: `check` says it, and so does whatever meets it later."""

import pytest
from engine_memory import MemorySink, no_progress
from postgres_pages_world import made, own_place, tree
from postgres_past_world import Twice
from postgres_world import as_owner, cluster

from dbguardd.engines.postgresql.meaning import library_in
from dbguardd.errors import ToolMissing

FIND = "apt-cache search 'postgresql.*gone-3'"


@pytest.fixture(scope="module")
def live():
    """Its database has an extension that is not installed here, and one whose library is not."""
    with cluster() as server:
        server.sql("CREATE DATABASE shop")
        server.sql("CREATE EXTENSION hstore; CREATE TABLE t AS SELECT 'a=>1'::hstore AS h", "shop")
        server.sql("UPDATE pg_proc SET probin = '$libdir/gone-3' WHERE proname = 'hstore_out'", "shop")
        server.sql(
            "CREATE EXTENSION citext; UPDATE pg_extension SET extname = 'nowhere' WHERE extname = 'citext'", "shop"
        )
        yield server


def test_a_check_names_missing_extensions_and_libraries(live):
    (found,) = [one for one in as_owner(made(live).probe).findings if one.name == "extensions for test restores"]
    assert found.outcome == "failed" and "nowhere" in found.detail
    assert "the library $libdir/gone-3 of hstore" in found.detail and "$libdir/hstore" not in found.detail
    search = f"apt-cache search 'postgresql-{live.major}.*"
    assert f"{search}hstore'; {search}nowhere'" in found.detail


def test_a_proof_and_questions_say_that_the_library_is_missing_here(live):
    with own_place() as place:

        def prove():
            engine, sink = made(live), MemorySink()
            facts = engine.dump(sink, no_progress)
            engine.release()
            engine.restore(tree(sink.streams, facts), place / "restored", no_progress)
            return (sink.streams, facts), engine.examine(place / "restored", (), no_progress)

        backup, examined = as_owner(prove)
        unread = [one for one in examined.findings if "gone-3" in one.detail]
        assert [one.outcome for one in unread] == ["inconclusive"]
        assert "table shop.public.t was read. This host lacks that library. Find: " + FIND in unread[0].detail
        past = Twice(live, place, {"pages": backup}, {"pages": backup})
        with pytest.raises(ToolMissing, match="a library that is not on this host") as caught:
            past.ask("table", "t", "sql")
        assert caught.value.hints == (FIND,)
        with pytest.raises(ToolMissing, match="a library that is not on this host") as caught:
            past.ask("query", "SELECT * FROM t")
        assert caught.value.hints == ("dbguardctl check cluster  # it names the library",)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('could not access file "$libdir/postgis-3": No such file or directory', "postgis-3"),
        ('could not load library "/usr/lib/x/lib/hstore.so": file too short', "hstore"),
        ('could not access file "passwordcheck": No such file or directory', "passwordcheck"),
        ('could not access file "a\'; touch x": No such file or directory', None),
        ('could not open file "base/5/1": No such file or directory', None),
    ],
)
def test_only_the_name_of_a_library_becomes_part_of_a_command(said, name):
    assert library_in(said) == (f"apt-cache search 'postgresql.*{name}'" if name else "")
