"""How mistakes are shown. To write the golden texts anew: UPDATE_GOLDEN=write pytest tests/policy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dbguardd.errors import PolicyInvalid
from dbguardd.policy import Host
from dbguardd.policy.mistakes import MAX_SHOWN, Mistake, dotted, refusal, report, summary
from tests.policy.texts import check_text

GOLDEN = Path(__file__).parent / "golden"
FILE = "/etc/dbguard/policy.toml"


def nobody(name: str) -> int:
    if name in ("root", "dbguard", "adm"):
        return 0
    raise PolicyInvalid(f"{name}: there is no such user on this host")


HOST = Host(uid_of=nobody, gid_of=nobody)


@pytest.mark.parametrize("name", ["bad", "together", "odd"])
def test_golden(name):
    policy, found = check_text({FILE: (GOLDEN / f"{name}.toml").read_text()}, HOST)
    told = report(found, running="The running policy (loaded 2026-09-12 09:14) is unchanged.") + "\n"
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "write":
        golden.write_text(told)
    assert told == golden.read_text()
    assert (policy is None) == (name == "bad")


def test_a_mistake_in_a_drop_in_is_shown_there():
    _, found = check_text(
        {
            FILE: 'version = 1\n[database.app]\nengine = "sqlite"\npath = "/a.db"\n',
            "/etc/dbguard/conf.d/app.toml": '[database.app]\nkeep = { last = 1, yearli = 2 }\nmethod = "page"\n',
        },
        HOST,
    )
    assert [(mistake.file, mistake.line, mistake.column, mistake.hint) for mistake in found] == [
        ("/etc/dbguard/conf.d/app.toml", 2, 20, 'did you mean "yearly"?'),
        ("/etc/dbguard/conf.d/app.toml", 3, 10, 'did you mean "pages"?'),
    ]


def test_every_file_with_bad_syntax_is_named():
    _, found = check_text({FILE: "version = \n", "/etc/dbguard/conf.d/a.toml": "[database.app\n"}, HOST)
    assert [(mistake.code, mistake.file, mistake.line) for mistake in found] == [
        ("config/syntax", FILE, 1),
        ("config/syntax", "/etc/dbguard/conf.d/a.toml", 1),
    ]


TOGETHER = """\
version = 1
timezone = "UTC"
[defaults]
keep_plain = { count = 1, path = "/x" }
keep = { last = "x" }
[storage.off]
type = "directory"
path = "relative"
sweep = "never"
[database.a]
engine = "sqlite"
path = "/srv/a.db"
max_block = "100"
storage = ["off"]
class = "nope"
[database.b]
engine = "sqlite"
path = "/srv/a.db"
storage = ["of"]
key = "k"
keep = { last = 0 }
run_as = "nosuchuser"
[database.c]
path = "/srv/c.db"
[key.k]
type = "passphrase"
secret = "x"
"""


def test_what_keys_say_together_is_wrong_beside_keys_that_are_wrong():
    _, found = check_text({FILE: TOGETHER}, HOST)
    assert [(mistake.line, mistake.code.removeprefix("config/"), mistake.hint) for mistake in found] == [
        (2, "unknown-key", '"timezone" belongs in [defaults] or [class.NAME] or [database.NAME]'),
        (4, "unknown-key", '"keep_plain" belongs in [database.NAME]'),
        (5, "bad-value", ""),
        (8, "bad-value", ""),
        (9, "bad-value", ""),
        (13, "bad-value", 'did you mean "100ms", "100s" or "100min"?'),
        (15, "no-such-class", "known: none"),
        (18, "same-path", "one database, one table"),
        (19, "no-such-storage", "known: local"),
        (21, "keeps-nothing", "at least one of last, daily, weekly, ... or within"),
        (22, "no-such-user", ""),
        (23, "missing-key", ""),
        (27, "literal-secret", ""),
    ]


def test_a_key_that_stands_twice_is_named():
    _, found = check_text({FILE: 'version = 1\n[database.a]\npath = "/x"\npath = "/y"\n'}, HOST)
    assert [mistake.message for mistake in found] == ['not TOML: the key "path" is given twice']
    assert "further mistakes" in found[0].hint


def test_a_table_that_stands_twice_is_named():
    text = 'version = 1\n[database.a]\npath = "/x"\n[database.a]\n'
    _, found = check_text({FILE: text}, HOST)
    assert [mistake.message for mistake in found] == ["not TOML: the table [database.a] is given twice"]


@pytest.mark.parametrize(
    "path", ["/var/lib", "/var/lib/dbguard", "/var/lib/dbguard/staging", "/var/lib/dbguard/staging/x"]
)
def test_a_storage_leaves_the_state_of_the_daemon_alone(path):
    table = f'version = 1\n[storage.local]\ntype = "directory"\npath = "{path}"\n'
    _, found = check_text({FILE: table}, HOST)
    assert [mistake.code for mistake in found] == ["config/path-in-state"]
    _, found = check_text({FILE: table.replace(path, "/var/lib/dbguard/staged")}, HOST)
    assert not found


def test_as_json():
    _, (mistake,) = check_text({FILE: "version = 1\n[defaults]\nkeeep = 3\n"}, HOST)
    assert mistake.to_json() == {
        "severity": "error",
        "code": "config/unknown-key",
        "message": 'defaults has no setting "keeep"',
        "key": "defaults.keeep",
        "file": FILE,
        "line": 3,
        "column": 1,
        "length": 5,
        "source": "keeep = 3",
        "hint": 'did you mean "keep"?',
    }


def test_the_error_bears_all_of_them():
    _, found = check_text({FILE: (GOLDEN / "bad.toml").read_text()}, HOST)
    error = refusal(FILE, found)
    assert report(found) == f"{error.detail}\n\n{summary(found)}"
    assert error.facts["mistakes"] == [mistake.to_json() for mistake in found]
    assert error.message.startswith(f"{FILE}: {len(found)} errors")


def test_many_mistakes_are_counted_and_not_all_shown():
    found = [Mistake("error", "config/x", f"mistake {n}", file=FILE) for n in range(MAX_SHOWN + 5)]
    assert report(found).count("error[") == MAX_SHOWN
    assert summary(found) == f"{MAX_SHOWN + 5} errors in {FILE}."


def test_summary():
    error, warning = (Mistake(kind, "config/x", "x", file=FILE) for kind in ("error", "warning"))
    assert summary([]) == "No mistakes."
    assert summary([error]) == f"1 error in {FILE}."
    assert summary([warning, warning]) == f"2 warnings in {FILE}."
    assert summary([error, warning], running="Old policy.") == f"1 error and 1 warning in {FILE}. Old policy."


def test_dotted():
    assert dotted(("database", "app", "proof", "queries", 0, "sql")) == "database.app.proof.queries[0].sql"
    assert dotted(("database", "my app")) == 'database."my app"'
