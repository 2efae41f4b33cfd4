"""The transcript in the README: made by the real daemon and client, compared word for word, numbers apart.

README=write python -m pytest tests/docs/test_readme.py     makes it anew; look at the difference before you keep it.

What a person would see stands there, with the paths of an installed host for those of the test. Numbers, sizes, times
and ids are those of the run that made it; the comparison masks them, and the columns that move with them.
"""

from __future__ import annotations

import random
import re
import shlex
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from tests.demo import Host
from tests.workload import book, seed

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- transcript:begin -->\n", "<!-- transcript:end -->\n"
TOUR = (
    "dbguardctl protect /var/lib/app/app.db",
    "dbguardctl backup app",
    "dbguardctl status",
    "dbguardctl restore app --to /var/lib/app/look.db",
)
_PROGRESS = re.compile(
    r"^  (written to \S+, )?[a-z]+( (\d+ % )?of [\d.]+ \w+)?\n", re.M
)  # one line that moves, on a terminal
_HOST = re.compile(r"^(dbguard \S+ on )\S+( )", re.M)
_MASKS = (
    (re.compile(r"\b01[0-9A-HJKMNP-TV-Z]{24}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\+\d\d:\d\d)?"), "MOMENT"),
    (re.compile(r"\b(today|tonight|tomorrow|yesterday|[A-Z][a-z]{2}) +\d\d:\d\d|\bin \d+ min\b( \d+ s\b)?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (B|KiB|MiB|GiB|TiB)"), "SIZE"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|min)\b( \d+ s\b)?"), "SPAN"),
    (re.compile(r"\b\d+(\.\d+)?( |\b)"), "N "),
    (re.compile(r"[ \t]+"), " "),
)


def live(place: Path) -> str:
    """Walk through the tour on a host of its own, and return what a person would see on db1."""
    host, database = Host(place), place / "app.db"
    host.environment |= {"TZ": "UTC", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
    paths = {"/var/lib/app/app.db": str(database), "/var/lib/app/look.db": str(place / "look.db")}
    seed(database, bookings=20_000, documents=1_000)
    told = []
    with host.daemon():
        for command in TOUR:
            words = [paths.get(word, word) for word in shlex.split(command)[1:]]
            done = host.run(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert done.returncode in (0, 3), done.stdout
            told.append(f"$ {command}\n{done.stdout}")
            _work(database)
            host.settle()
    text = _PROGRESS.sub("", "\n".join(told))
    places = {"/etc/dbguard/conf.d": f"{place}/conf.d", "/var/lib/dbguard/store": f"{place}/state/store"}
    for shown, real in (paths | places).items():
        text = text.replace(real, shown)
    return _HOST.sub(r"\1db1\2", text)


def _work(database: Path) -> None:
    dice = random.Random(11)
    with closing(sqlite3.connect(database)) as db, db:
        for _ in range(200):
            book(db, dice)


def masked(text: str) -> str:
    """The words of a transcript."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return "\n".join(line.strip() for line in text.splitlines())


def printed() -> str:
    """The transcript that stands in the README."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def print_anew(text: str) -> None:
    """Put another transcript into the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
