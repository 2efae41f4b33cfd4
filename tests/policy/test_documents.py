"""The files that ship: they load, say the truth about defaults, and the manual has every key."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dbguardd.policy import Host, Policy
from dbguardd.policy.reference import documented, effective, explain, json_schema
from tests.policy.texts import check_text

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man/dbguard.toml.5"
MANDOC = shutil.which("mandoc")
KEYS = list(documented())
HOST = Host(uid_of=lambda name: 1, gid_of=lambda name: 1)


def load(text: str) -> Policy:
    policy, found = check_text({"policy.toml": text}, HOST)
    assert policy is not None, found
    assert found == []
    return policy


@pytest.mark.parametrize("file", [ROOT / "etc/policy.toml", *sorted((ROOT / "etc/examples").glob("*.toml"))])
def test_what_ships_loads_without_a_warning(file):
    load(file.read_text())


def test_the_drop_in_example_goes_with_what_ships():
    drop_in = (ROOT / "etc/examples/conf.d/wiki.toml").read_text()
    policy, found = check_text({"policy.toml": (ROOT / "etc/policy.toml").read_text(), "wiki.toml": drop_in}, HOST)
    assert found == []
    assert policy is not None
    assert policy.names() == ["wiki"]


def test_the_defaults_in_what_ships_are_the_defaults():
    text = (ROOT / "etc/policy.toml").read_text()
    uncommented = re.sub(r"(?m)^#(?=[a-z_]+ *= )", "", text)
    assert uncommented.count("\n#") < text.count("\n#") - 10
    assert effective(load(uncommented)) == effective(load("version = 1"))


def test_the_examples_use_every_key():
    texts = "\n".join(file.read_text() for file in (ROOT / "etc").rglob("*.toml"))
    unused = [key.key for key in KEYS if not re.search(rf"\b{key.key.rsplit('.', 1)[-1]}\b *=", texts)]
    tables = {"defaults.proof", "defaults.proof.queries[].max", "key.NAME.secret.file", "key.NAME.secret.credential"}
    assert set(unused) <= tables | {"database.NAME.lock_timeout", "defaults.stall_timeout", "defaults.job_timeout"}


def test_the_schema_that_ships_is_that_of_the_model():
    assert json.loads((ROOT / "etc/policy.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry.key)
def test_every_key_is_explained_and_in_the_manual(entry):
    assert explain(entry.key)["means"] == entry.text
    page = " ".join(MAN.read_text().replace("\\-", "-").replace("\\&", "").split())
    name = re.sub(r"^(defaults|access|daemon|(database|storage|key)\.NAME)\.", "", entry.key)
    assert f".It Sy {name} " in page or name == "version"
    assert re.sub(r"`([^`]+)`", r"\1", entry.text)[1:] in page


def test_texts_are_one_line_without_a_full_stop():
    assert all(0 < len(key.text) <= 125 and not key.text.endswith(".") for key in KEYS)


@pytest.mark.skipif(MANDOC is None, reason="no mandoc")
def test_the_manual_page_is_clean():
    told = subprocess.run([str(MANDOC), "-Tlint", str(MAN)], capture_output=True, text=True, check=False).stdout
    assert [line for line in told.splitlines() if "referenced manual not found" not in line] == []


def test_the_examples_in_the_manual_load():
    literals = [part.split(".Ed")[0] for part in MAN.read_text().split(".Bd -literal -offset indent\n")[1:]]
    assert len(literals) == 3
    for literal in literals:
        load(literal.replace("\\(dq", '"'))
