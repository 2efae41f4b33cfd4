"""The README: its transcript is what is printed today, its commands run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo import Host
from tests.docs import transcript
from tests.docs.pages import ROOT, commands, fenced
from tests.surface.test_manual import parse
from tests.workload import consistent, seed

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [text for language, text in fenced(README) if language == "sh"]


def test_the_transcript_is_what_is_printed(tmp_path: Path) -> None:
    live = f"```\n{transcript.live(tmp_path)}```\n"
    if os.environ.get("README") == "write":
        transcript.print_anew(live)
    assert transcript.masked(transcript.printed()) == transcript.masked(live), (
        "the README is stale; make it anew with README=write and look at the difference"
    )


def test_masks_hide_numbers_and_nothing_else() -> None:
    one = "ok  backup 01M7YNAMKCD7EF28TN9G9YAN4J is stored · 0.9 s in all\n●  app   1 min 3 s ago   today 08:59  92 ms"
    two = "ok  backup 01M8AAAAAAAAAAAAAAAAAAAAAA is stored · 12 s in all\n●  app  2 ms ago  yesterday 18:59    1 h"
    assert transcript.masked(one) != transcript.masked(two)  # an hour is not a number
    assert transcript.masked(one) == transcript.masked(two.replace("1 h", "1 s"))
    assert transcript.masked("3 of 4 proven") != transcript.masked("3 of 4 stored")


@pytest.mark.parametrize("line", [line for text in SHELL for line in commands(text, "dbguardctl")], ids=" ".join)
def test_commands_of_the_client_can_be_typed(line: list[str]) -> None:
    parse(" ".join(line))


def test_commands_in_the_text_can_be_typed() -> None:
    spans = re.findall(r"`(dbguardctl [^`]+|dbguardd [^`]+)`", README)
    assert len(spans) >= 3
    for span in spans:
        if span.startswith("dbguardctl"):
            parse(span)
        else:
            from dbguardd.__main__ import _parser

            _parser().parse_args(span.split()[1:])


def block(start: str) -> str:
    [found] = [text for text in SHELL if start in text]
    return found


def test_the_way_onto_a_host(tmp_path: Path) -> None:
    """The block is run as it stands, in a home of its own; only the example's database lies elsewhere."""
    database = tmp_path / "app.db"
    seed(database, bookings=300, documents=10)
    script = block("dbguardctl init").replace("make lint ", ": ").replace("/var/lib/app/app.db", str(database))
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    waiting = "for i in $(seq 2400); do [ -S ~/guard/api.sock ] && break; sleep 0.05; done"  # a person is slower
    script = script.replace("api.sock &\n", f"api.sock & daemon=$!\n{waiting}\n")
    script = f"set -e\ntrap 'kill $daemon; wait $daemon' EXIT\n{script}"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "app is protected" in done.stdout
    assert "AGE-SECRET-KEY-1" in done.stdout
    assert (tmp_path / "guard/conf.d/app.toml").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.db", "guard"]


def test_the_way_back_when_everything_is_lost(tmp_path: Path) -> None:
    """Storage and identity are copied away, the host is deleted, and the block is run."""
    place = tmp_path / "host"
    place.mkdir()
    host = Host(place)
    seed(place / "app.db", bookings=300, documents=10)
    with host.daemon():
        assert host.run("protect", str(place / "app.db"), capture_output=True).returncode == 0
        sheet = json.loads(host.run("--json", "key", "recovery-sheet", capture_output=True).stdout)
    copy = tmp_path / "copy"
    shutil.copytree(place / "state" / "store", copy)
    shutil.rmtree(place)
    groups = re.search(r"AGE-SECRET-KEY-1\n(?: {4}[A-Z0-9 ]+\n)+", sheet["sheet_text"])
    assert groups
    (copy / "identity.txt").write_text(groups[0])
    steps = block("recover/recover.py")
    for line in commands(steps, "python3"):
        assert "-m venv" in " ".join(line) or " ".join(line[1:4]) in sheet["sheet_text"]
    script = re.sub(r"^(cd|python3 -m venv) .*\n", "", steps, flags=re.M).replace("python3", sys.executable)
    recovered = tmp_path / "recovered"
    listing, restoring = script.replace("/srv/recovered", str(recovered)).splitlines()
    said = subprocess.run(["/bin/sh", "-c", listing], cwd=copy, capture_output=True, text=True, check=True)
    listed, mark = said.stdout, said.stderr.partition(":")[0]
    assert mark.startswith("mark ") and mark in sheet["sheet_text"]
    assert hashlib.sha256((copy / "recover/recover.py").read_bytes()).hexdigest() in sheet["sheet_text"]
    restoring = restoring.replace("BACKUP", listed.split()[0])
    subprocess.run(["/bin/sh", "-c", restoring], cwd=copy, capture_output=True, check=True)
    assert consistent(recovered / "database")
