"""A database of more tables than one message has room for crosses the seam, with its files and its fingerprint."""

import socket
import threading

import pytest

from dbguardd.engines.base import Engine, Examination
from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.errors import Internal, WorkerDied
from dbguardd.jobs.verify import same_content
from dbguardd.serialize import to_json
from dbguardd.worker.channel import NAMES, OBJECT_BYTES, Channel
from dbguardd.worker.engine_half import EngineHalf
from dbguardd.worker.remote import RemoteEngine

LONG = "\N{GRINNING FACE}" * 50  # twelve bytes each in a message
SPACES = ("public", '"a.b ""c"', LONG)


def content(changes=()):
    """Of 30,000 tables in three schemas, and one that is in none."""
    tables = {
        f'shop.{space}."{LONG}{n}"': TablePrint(n, "d" * 64) for space in SPACES for n in range(10_000)
    }  # fmt: skip
    return Fingerprint("s", tables | {"shop: large objects": TablePrint(1, "e" * 64)} | dict(changes))


class Many:
    """An engine of many tables."""

    def __init__(self):
        self.found = content()

    def fingerprint(self, progress, stored):
        return self.found

    def examine(self, target, queries, progress):
        return Examination([], self.found)

    def restore(self, tree, target, progress):
        names = list(tree.names())
        return [str(len(names)), names[0], names[-1]]

    def replace(self, source, progress):
        return "x" * OBJECT_BYTES


@pytest.fixture
def many():
    """An engine in a half of its own, and what the other half sees of it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    engine = Many()

    def serve():
        with pytest.raises(WorkerDied):
            EngineHalf(Channel(there, lambda: False), Engine("many", engine)).serve()
        there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield engine, RemoteEngine(Channel(here, lambda: False))
    here.close()
    thread.join()


def silent(*_):
    """Progress that nobody looks at."""


def test_the_tables_of_a_schema_are_told_as_one_and_differ_where_one_of_them_does(many, tmp_path):
    engine, remote = many
    taken = remote.fingerprint(silent)
    assert set(taken.tables) == {*(f"shop.{space}.*" for space in SPACES), "shop: large objects"}
    assert (taken.count, taken.rows) == (30_001, 3 * sum(range(10_000)) + 1)
    found = same_content(remote.examine(tmp_path, (), silent), to_json(taken), None)
    assert (found.outcome, found.detail) == ("ok", "30001 tables, 149985001 rows equal")
    engine.found = content({f'shop.public."{LONG}7"': TablePrint(7, "f" * 64)})
    assert (
        same_content(remote.examine(tmp_path, (), silent), to_json(taken), None).detail == "table shop.public.* differs"
    )


def test_schemas_that_are_as_many_are_told_as_one_database_and_few_tables_each_by_itself():
    each = Fingerprint("s", {f"{base}.s{n}.t": TablePrint(1, "d") for base in "ab" for n in range(99)})
    assert each.folded(100_000) is each and each.count == 198
    assert set(each.folded(1000).tables) == {"a.*", "b.*"} and each.folded(1000).count == 198
    assert set(each.folded(200).tables) == {"*"} and each.folded(200).count == each.folded(200).rows == 198


def test_more_names_than_a_message_has_cross(many, tmp_path):
    _engine, remote = many

    class Tree:
        facts = {}

        def names(self):
            return (f"base/{n}" for n in range(2 * NAMES))

    assert remote.restore(Tree(), tmp_path, silent) == [str(2 * NAMES), "base/0", f"base/{2 * NAMES - 1}"]


def test_an_answer_that_is_too_large_is_a_problem_and_the_channel_goes_on(many, tmp_path):
    _engine, remote = many
    with pytest.raises(Internal, match="over the limit"):
        remote.replace(tmp_path, silent)
    assert remote.examine(tmp_path, (), silent).findings == []
