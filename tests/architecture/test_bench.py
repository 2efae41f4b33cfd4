"""`make bench` says of a row that missed its goal what was busy meanwhile."""

from tests.bench.daemon_rows import explain
from tests.bench.postgresql_busy import answers
from tests.bench.sampling import SAMPLES_A_SECOND, busy

DAEMON = 'process 7:"/x/bin/python /x/bin/dbguardd --state /s"'
HALF = 'process 8:"/x/bin/python -I -m dbguardd.worker repository 7 5"'
STACKS = "\n".join(
    [
        f"{DAEMON};<module> (dbguardd:3);main (dbguardd/__main__.py:9) {SAMPLES_A_SECOND}",
        f"{HALF};main (dbguardd/worker/__main__.py:9);_find_and_load (<frozen importlib._bootstrap>:1165) 5",
        f"{HALF};_find_and_load (<frozen importlib._bootstrap>:1165);<module> (apsw/__init__.py:1) 5",
        f"{HALF};run (threading.py:975);seal (dbguardd/repository/seal.py:40) {2 * SAMPLES_A_SECOND}",
        f"{HALF};run (threading.py:975);Condition.wait (threading.py:1) 999",
        f"<module> (dbguardctl:1);ask (dbguardctl/client.py:2) {SAMPLES_A_SECOND // 2}",
    ]
)


def test_samples_become_seconds_of_functions_and_of_imports():
    assert list(busy(STACKS).items()) == [
        ("repository half: seal (dbguardd/repository/seal.py)", 2.0),
        ("main (dbguardd/__main__.py)", 1.0),
        ("ask (dbguardctl/client.py)", 0.5),
        ("repository half: imports", 10 / SAMPLES_A_SECOND),
    ]


def test_a_row_that_missed_its_goal_is_explained_and_no_other(capsys):
    missed, met = {"row": "status", "met": False}, {"row": "start", "met": True}
    for row in (missed, met):
        explain(row, lambda: {"imports": 0.21})
    assert missed["busy"] == {"imports": 0.21}
    assert "busy" not in met
    assert capsys.readouterr().out == "  busy: imports 0.21 s\n"


def test_a_transaction_of_pgbench_counts_in_the_span_in_which_it_ended(tmp_path):
    (tmp_path / "said.1").write_text("0 1 7000 0 100 500000\n1 1 2000 0 100 900000\n0 2 3000 0 101 0\n0 3 9")
    (tmp_path / "said.1.1").write_text("2 1 5000 0 100 999999\n2 2")
    assert answers(tmp_path, [("alone", 100.6, 101.0), ("then", 101.0, 102.0)]) == [[2.0, 5.0], [3.0]]
