"""What a policy says of one database, in which words, and what tells two policies apart."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbguardd.errors import NotFound, PolicyInvalid
from dbguardd.policy import Policy
from dbguardd.policy.model import Access
from dbguardd.policy.reference import diff, effective, explain, json_schema
from dbguardd.policy.render import render_database
from dbguardd.rules.retention import Keep
from dbguardd.states import Role
from tests.policy.texts import check_text

NOW = datetime(2026, 9, 12, 9, 14, tzinfo=UTC)


def policy(text: str) -> Policy:
    found, mistakes = check_text({"policy.toml": f"version = 1\n{text}"})
    assert found is not None, mistakes
    return found


FULL = """
[defaults]
timezone = "Europe/Berlin"
key = "hr"
[class.critical]
backup = "every 15min"
keep = { daily = 30 }
[database.app]
engine = "sqlite"
path = "/srv/app.db/"
class = "critical"
keep = { last = 9, within = "36h" }
run_as = "root"
compress = "zstd:19"
verify = "off"
keep_plain = { count = 7, path = "/srv/plain" }
proof.queries = [{ sql = "select 1", equals = 9007199254740993, why = "exact" }]
storage = ["disk"]
[database.other]
engine = "sqlite"
path = "/srv/other.db"
[storage.disk]
type = "directory"
path = "/mnt/disk"
keep_free = "20GiB"
max_size = "1TiB"
grace = "7d"
[key.hr]
type = "passphrase"
secret = { file = "/etc/dbguard/hr" }
recovery = "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq"
"""


def test_a_database_takes_its_own_then_its_class_then_the_defaults():
    app = policy(FULL).guarded("app")
    assert (app.name, app.path, app.class_) == ("app", "/srv/app.db", "critical")
    assert app.backup.text == "every 15min"
    assert (app.keep.last, app.keep.daily, app.keep.within) == (9, 0, timedelta(hours=36))
    assert str(app.timezone) == "Europe/Berlin"
    assert app.window == timedelta(hours=4)
    other = policy(FULL).guarded("other")
    assert (other.backup.text, other.keep.daily, other.keep.last) == ("daily 01:00", 7, 3)


def test_a_class_may_say_again_what_is_the_default():
    text = '[defaults]\nmissed = "skip"\n[class.c]\nmissed = "run-once"\n'
    text += '[database.a]\nengine = "sqlite"\npath = "/a"\nclass = "c"\n'
    assert policy(text).guarded("a").missed == "run-once"


def test_no_such_database():
    with pytest.raises(NotFound) as caught:
        policy(FULL).guarded("nope")
    assert caught.value.detail == "Databases: app, other."
    with pytest.raises(NotFound) as caught:
        policy(FULL).guarded("ap")
    assert caught.value.detail == "Databases: app, other. Did you mean app?"
    assert caught.value.hints == ("dbguardctl status",)


def test_the_spec_of_a_job():
    spec = policy(FULL).spec("app", "/var/lib/dbguard")
    assert json.loads(json.dumps(spec)) == spec == {
        "database": {
            "name": "app",
            "engine": "sqlite",
            "settings": {
                "path": "/srv/app.db",
                "method": "pages",
                "max_block_seconds": 0.1,
                "lock_timeout_seconds": 5.0,
                "continuous": False,
            },
            "place": "/srv/app.db",
            "compress_level": 19,
            "keep": {
                "last": 9,
                "hourly": 0,
                "daily": 0,
                "weekly": 0,
                "monthly": 0,
                "yearly": 0,
                "within_seconds": 129600.0,
            },
            "min_proven": 2,
            "continuous": False,
            "keep_log_seconds": 604800.0,
            "thin_log": [],
            "fingerprint_every_seconds": None,
            "timezone": "Europe/Berlin",
            "queries": [{"sql": "select 1", "min": None, "max": None, "equals": 9007199254740993, "database": "",
                            "why": "exact"}],
            "keep_plain": {"count": 7, "path": "/srv/plain"},
            "verify_after": False,
            "run_as": 0,
        },
        "storage": {
            "name": "disk",
            "type": "directory",
            "path": "/mnt/disk",
            "keep_free": 20 << 30,
            "max_bytes": 1 << 40,
            "grace_seconds": 604800.0,
        },
        "key": {
            "name": "hr",
            "type": "passphrase",
            "secret": {"file": "/etc/dbguard/hr"},
            "recovery": ["age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq"],
        },
    }  # fmt: skip
    assert Keep.from_spec(spec["database"]).within == timedelta(hours=36)


def test_storage_and_key_exist_without_a_table():
    spec = policy('[database.a]\nengine = "sqlite"\npath = "/a"\n').spec("a", "/state/")
    assert spec["storage"]["path"] == "/state/store"
    assert spec["storage"]["keep_free"] == "10%"
    assert spec["key"] == {"name": "main", "type": "machine", "path": "/state/machine.key", "recovery": []}
    assert spec["database"]["run_as"] is None


def test_a_machine_key_in_a_credential():
    text = '[key.main]\ntype = "machine"\ncredential = "k"\n[database.a]\nengine = "sqlite"\npath = "/a"\n'
    assert policy(text).key_spec("main", "/s") == {"name": "main", "type": "machine", "credential": "k", "recovery": []}


def test_run_as_somebody_who_is_not_there():
    text = '[database.a]\nengine = "sqlite"\npath = "/a"\nrun_as = "nobody-knows-him"\n'
    _, found = check_text({"p": f"version = 1\n{text}"})
    assert [mistake.code for mistake in found] == ["config/no-such-user"]
    with pytest.raises(PolicyInvalid):
        policy(text).spec("a", "/s")


def test_a_policy_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        policy(FULL).defaults.jitter = timedelta(0)  # type: ignore[misc]


def test_fingerprints_tell_policies_apart_and_nothing_else():
    same = FULL.replace("[class.critical]", "# a comment\n[class.critical]").replace('"36h"', '"1d12h"')
    assert policy(FULL).fingerprint() == policy(same).fingerprint()
    assert policy(FULL).fingerprint() != policy(FULL.replace('"36h"', '"35h"')).fingerprint()


def test_diff():
    new = FULL.replace("last = 9", "last = 3").replace("[database.other]", "[database.third]")
    new = new.replace('timezone = "Europe/Berlin"', 'timezone = "UTC"') + "[daemon]\nmax_jobs = 7\n"
    changes = {change.key: (change.old, change.new) for change in diff(policy(FULL), policy(new))}
    assert changes.pop("database.other")[1] is None
    assert changes.pop("database.third")[0] is None
    assert changes.pop("database.app.keep")[1]["last"] == 3
    assert changes == {"database.app.timezone": ("Europe/Berlin", "UTC"), "daemon.max_jobs": (2, 7)}
    assert diff(policy(FULL), policy(FULL)) == []


def test_explain():
    found = explain("database.app.keep", policy(FULL))
    assert found["means"].startswith("which backups stay")
    assert found["tables"] == ["[defaults]", "[class.NAME]", "[database.NAME]"]
    assert found["value"]["last"] == 9
    assert explain("keep")["value"] is None
    assert explain("storage.disk.grace", policy(FULL))["value"] == "7d"
    assert explain("database.app.proof.queries[0].sql")["required"]
    assert explain("window")["default"] == "4h"
    assert explain("max_block")["tables"] == ["[database.NAME]"]


@pytest.mark.parametrize(
    ("key", "close"),
    [("database.app.keeep", "keep"), ("storge.local.path", "storage"), ("rpo", "explain objective.rpo"), ("", "man")]
    + [("at", "has them all. man 5")],  # an option of commands, and like no key
)
def test_explain_an_unknown_key(key, close):
    with pytest.raises(NotFound) as caught:
        explain(key)
    assert close in " ".join([caught.value.detail, *caught.value.hints])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("database.ap", "Did you mean app? Keys of [database.NAME]: engine, path, url,"),
        ("database.app", "Keys of [database.NAME]: engine, path, url,"),
        ("storage.disk", "Keys of [storage.NAME]: type, path,"),
        ("daemon", "Keys of [daemon]: max_jobs."),
    ],
)
def test_a_table_is_explained_by_its_keys(key, said):
    with pytest.raises(NotFound) as caught:
        explain(key, policy(FULL))
    assert caught.value.detail.startswith(said)
    explain(caught.value.hints[0].removeprefix("dbguardctl config explain "))


def test_the_value_of_a_key_without_a_table_is_the_default_of_all_databases():
    assert explain("storage", policy(FULL))["value"] == ["local"]


def test_the_effective_policy_is_a_policy():
    values = {key: value for key, value in effective(policy(FULL)).items() if value}
    assert policy(FULL).fingerprint()
    again = Policy.model_validate(_without_nulls(values))
    assert diff(policy(FULL), again) == []


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def test_the_schema_has_every_key_closed():
    schema = json_schema()
    tables = [schema, *(table for table in schema["$defs"].values() if "properties" in table)]
    assert all(table["additionalProperties"] is False for table in tables)
    assert all(described.get("description") for table in tables for described in table["properties"].values())
    assert schema["$defs"]["Settings"]["properties"]["window"]["default"] == "4h"


def test_a_drop_in_of_protect_can_be_loaded():
    settings = {
        "engine": "sqlite",
        "path": '/srv/a "b"\\c.db',
        "keep_plain": {"count": 7, "path": "/p"},
        "proof": {"queries": [{"sql": "select 1", "equals": 1}]},
    }
    text = render_database("app", settings, NOW, "dbguardctl protect '/srv/a \"b\"'")
    assert text.startswith("#:schema /usr/share/dbguard/policy.schema.json\n# Written by `dbguardctl protect")
    assert "at 2026-09-12 09:14 UTC" in text
    assert tomllib.loads(text) == {"database": {"app": settings}}
    assert policy(text).guarded("app").path == settings["path"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("App", {"engine": "sqlite", "path": "/a"}),
        ("app", {"engine": "sqlite", "path": "a"}),
        ("app", {"engine": "sqlite", "path": "/a", "x": 1}),
    ],
)
def test_a_drop_in_that_could_not_be_loaded_is_not_written(name, settings):
    with pytest.raises(PolicyInvalid):
        render_database(name, settings, NOW)


def test_nothing_can_be_smuggled_in_by_the_reason():
    with pytest.raises(PolicyInvalid):
        render_database("app", {"engine": "sqlite", "path": "/a"}, NOW, "x\n[access]\nread = ['mallory']")


@pytest.mark.parametrize(
    ("user", "groups", "role"),
    [
        ("root", [], Role.ADMIN),
        ("alice", ["dbguard", "adm"], Role.OPERATE),
        ("bob", ["adm"], Role.READ),
        ("mallory", ["users"], None),
        ("group:dbguard", [], None),
    ],
)
def test_roles(user, groups, role):
    assert Access().role(user, groups) is role


def test_no_such_storage_or_key():
    with pytest.raises(NotFound):
        policy(FULL).storage_spec("nope", "/s")
    with pytest.raises(NotFound):
        policy(FULL).key_spec("nope", "/s")


def test_a_diff_without_databases_is_that_of_the_defaults():
    (change,) = diff(policy(""), policy('[defaults]\nwindow = "1h"\n'))
    assert change.to_json() == {"key": "defaults.window", "old": "4h", "new": "1h"}


def test_a_database_in_no_storage_of_the_policy_is_told_before_any_job():
    _, found = check_text({"p": 'version = 1\n[database.a]\nengine = "sqlite"\npath = "/a"\nstorage = ["b"]\n'})
    assert [mistake.code for mistake in found] == ["config/no-such-storage"]
