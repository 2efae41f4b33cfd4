"""Only what says that the data is wrong fails a backup: a host that lacks something, or a setting, do not."""

import pytest

from dbguardd.engines.postgresql.meaning import errors_in, outcome, trouble
from dbguardd.errors import Degraded, NoSpace

AT = 'connection to server on socket "/x/.s.PGSQL.5432" failed: FATAL:  '
DAMAGE = [
    AT + '"base/5" is not a valid data directory DETAIL:  File "base/5/PG_VERSION" is missing.',
    AT + 'could not open file "base/5/pg_filenode.map": No such file or directory',
    AT + 'database "shop" does not exist DETAIL:  The database subdirectory "base/5" is missing.',
    AT + 'relation mapping file "base/5/pg_filenode.map" contains incorrect checksum',
    AT + 'could not read block 0 in file "base/5/1259": read only 0 of 8192 bytes',
    'invalid page in block 3 of relation "base/5/16390"',
    "recovery ended before configured recovery target was reached",
    "could not locate a valid checkpoint record",
    "WAL ends before consistent recovery point",
    "could not access status of transaction 4711",
    "cache lookup failed for type 16400",
]
OPEN = [
    AT + 'database locale is incompatible with operating system DETAIL:  The database was initialized with LC_COLLATE '
    '"de_DE.UTF-8",  which is not recognized by setlocale().',
    AT + 'could not access file "passwordcheck": No such file or directory',
    AT + "terminating connection due to idle-session timeout",
    AT + "could not write init file",
    AT + 'could not open file "base/5/1259": Too many open files',
    AT + 'could not open file "base/5/1259": Input/output error',
    AT + 'role "invalid page" is not permitted to log in',
    "function public.f(integer) does not exist",
    'could not write to file "base/pgsql_tmp/x": Disk quota exceeded',
]  # fmt: skip


@pytest.mark.parametrize("said", DAMAGE)
def test_what_says_that_the_data_is_wrong_is_a_verdict(said):
    assert outcome(said) == "failed" and trouble(said) is None


@pytest.mark.parametrize("said", OPEN)
def test_what_says_something_else_is_none(said):
    assert outcome(said, "XX000") == "inconclusive"


def test_codes_say_it_whatever_the_words_unless_the_host_is_in_trouble():
    assert outcome("tuple is odd", "XX001") == outcome("index is odd", "XX002") == "failed"
    assert outcome("out of memory", "XX001") == "inconclusive"
    kinds = (NoSpace, NoSpace, NoSpace, Degraded, Degraded)
    said = ("No space left on device", "Disk quota exceeded", "File too large", "Input/output error", "out of memory")
    assert tuple(map(trouble, said)) == kinds


def test_of_a_log_only_errors_count():
    log = (
        "2026-01-01 UTC [1] LOG:  invalid record length at 0/3000060: wanted 24, got 0\n"
        "2026-01-01 UTC [1] FATAL:  checkpoint request failed\n2026-01-01 UTC [1] HINT:  Consult recent messages."
    )
    assert errors_in(log).splitlines() == log.splitlines()[1:] and outcome(errors_in(log)) == "inconclusive"
