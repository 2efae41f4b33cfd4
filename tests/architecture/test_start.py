"""What start-up loads: every job starts two processes, every command one, so they load only what they need."""

import subprocess
import sys

import pytest

HEAVY = {
    "pydantic",
    "aiohttp",
    "structlog",
    "rich",
    "pyrage",
    "segno",
    "tomllib",
    "spanned_toml",
    "cronsim",
    "schedule",
}
OTHERS = {"dbguardd.wire", "dbguardd.repository.sweep"}  # what a half has no use for: each record costs it 0.4 ms
RARE = {f"dbguardd.repository.{name}" for name in ("check", "moment", "sweep", "thin")}
LATER = {f"dbguardd.engines.sqlite.{name}" for name in ("follow", "questions", "replace", "standby")}
LOADS = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sorted(sys.modules))"


def loaded(module):
    done = subprocess.run([sys.executable, "-I", "-c", LOADS, module], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("dbguardd.worker.repository_half", HEAVY | OTHERS | {"asyncio", "click", "http.client"}),
        ("dbguardd.jobs.backup", HEAVY | OTHERS | RARE | {"tempfile"}),
        ("dbguardd.jobs.question", HEAVY | OTHERS | {"dbguardd.rules.retention", "zoneinfo"}),
        (
            "dbguardd.worker.engine_half",
            HEAVY | OTHERS | {"dbguardd.requests", "asyncio", "click", "cryptography", "zstandard", "http.client"},
        ),
        ("dbguardd.engines.sqlite", HEAVY | LATER | {"asyncio", "logging", "_hashlib", "apsw"}),
        ("dbguardctl.app", HEAVY | {"asyncio", "sqlite3", "cryptography", "zstandard", "blake3"}),
        ("dbguardd.rules", HEAVY - {"cronsim"} | {"asyncio", "sqlite3", "socket", "subprocess"}),
        ("dbguardd.errors", HEAVY | {"asyncio", "socket", "sqlite3"}),
        ("dbguardd.wire", HEAVY | {"asyncio", "socket", "sqlite3"}),
        ("dbguardd.requests", HEAVY | {"dbguardd.wire", "dbguardd.states", "socket", "sqlite3"}),
    ],
)
def test_nothing_heavy_is_loaded(module, never):
    assert sorted(loaded(module) & never) == []


def test_the_engine_half_has_no_keys_and_no_repository():
    names = loaded("dbguardd.worker.engine_half")
    assert (
        sorted(name for name in names if name.startswith(("dbguardd.keys", "dbguardd.repository", "dbguardd.storage")))
        == []
    )


def test_a_daemon_that_starts_reads_neither_certificates_nor_its_own_source():
    """It speaks no TLS; and the text of a key of the policy is for who asks for it."""
    code = (
        "import linecache, dbguardd.api.server, dbguardd.policy, aiohttp.connector as connector;"
        "print(connector.ssl, [name for name in linecache.cache if 'dbguardd' in name])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None []\n"
