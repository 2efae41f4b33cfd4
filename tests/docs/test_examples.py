"""What the manual pages and etc/ tell people to type is typed here, against a real daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dbguardd.__main__ import _parser
from dbguardd.policy import Host as PolicyHost
from tests.demo import Host
from tests.docs.pages import PAGES, ROOT, blocks, commands, roff
from tests.policy.texts import check_text
from tests.surface.test_manual import parse
from tests.workload import seed

ETC = sorted((ROOT / "etc").rglob("*.toml"))
WORDS = re.compile(r"`?(dbguardctl (?:[a-z-]+ ?)+(?: *--[a-z-]+| *[A-Z]+| */[\w./-]+)*)")


def typed(program: str) -> list[tuple[str, ...]]:
    """Every command line of the pages, once."""
    found = [tuple(words) for page in PAGES for block in blocks(roff(page.name)) for words in commands(block, program)]
    return list(dict.fromkeys(words for words in found if "-->" not in words and "--HTTP" not in words))


def test_there_is_something_to_type() -> None:
    assert len(typed("dbguardctl")) >= 15
    assert len(typed("dbguardd")) >= 3


@pytest.mark.parametrize("words", typed("dbguardctl"), ids=" ".join)
def test_the_client_understands(words: tuple[str, ...]) -> None:
    parse(subprocess.list2cmdline(words))


@pytest.mark.parametrize("words", typed("dbguardd"), ids=" ".join)
def test_the_daemon_understands(words: tuple[str, ...]) -> None:
    if "VERB" not in words:
        _parser().parse_args(words[1:])


@pytest.mark.parametrize("path", ETC, ids=lambda path: path.name)
def test_what_etc_tells_people_to_type_exists(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        for found in WORDS.findall(line) if line.startswith("#") else ():
            parse(re.split(r"  +", found)[0])


def test_toml_in_the_pages_loads() -> None:
    found = [block for page in PAGES for block in blocks(roff(page.name)) if re.search(r"^version = 1$", block, re.M)]
    assert found
    for text in found:
        policy, mistakes = check_text({"policy.toml": text}, PolicyHost(uid_of=lambda name: 1, gid_of=lambda name: 1))
        assert policy is not None
        assert mistakes == []


# ------------------------------------------------------------------------------------------------ for real


@dataclass
class Site:
    """A host with a database `app`, two backups and a recovery key, where the pages' commands work."""

    host: Host
    names: dict[str, str]
    secret: str

    def run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        typed = [self.names.get(word, word) for word in words[1:]]
        return self.host.run(*typed, input=self.secret, capture_output=True, text=True, cwd=self.host.place, timeout=99)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    host = Host(place)
    host.environment |= {"TZ": "UTC", "TERM": "dumb"}
    host.policy.write_text('version = 1\n\n[defaults]\nkeep = { within = "10d" }\n')  # what the pages make
    host.policy.chmod(0o600)
    seed(place / "app.db", bookings=300, documents=10)
    with host.daemon():
        protected = host.run("protect", str(place / "app.db"), capture_output=True, text=True)
        assert protected.returncode == 0, protected.stderr + host.log.read_text()
        sheet = json.loads(host.run("--json", "key", "recovery-sheet", capture_output=True).stdout)
        [row] = json.loads(host.run("--json", "list", "app", capture_output=True).stdout)["backups"]
        assert host.run("backup", "app").returncode == 0  # what is lost is found by a newer one
        names = {
            "/var/lib/app/app.db": str(place / "app.db"),
            "/var/lib/app/look.db": str(place / "look-again.db"),
            "/var/lib/app/again.db": str(place / "again.db"),
            "/srv/restored/app.db": str(place / "restored.db"),
            "/var/lib/postgresql/back": str(place / "back"),
            "/tmp/look.db": str(place / "look.db"),  # noqa: S108 - as the page has it
            "yesterday 09:00": row["created_at"],
            "01K4YJ3M8R": row["id"][:10],
            "NAME": "app",
            "CODE": "DBG-6001",
        }
        yield Site(host, names, sheet["identity"])


ENDLESS = {("dbguardctl", "events", "--follow", "--json")}
DONE = ("dbguardctl", "protect", "/var/lib/app/app.db")
SETTLED = {DONE: 2, (*DONE, "--adopt", "app"): 2}  # the site has done it: it says so


@pytest.mark.parametrize("words", [words for words in typed("dbguardctl") if words not in ENDLESS], ids=" ".join)
def test_the_client_does_it(words: tuple[str, ...], site: Site) -> None:
    done = site.run(words)
    assert done.returncode in ({SETTLED[words]} if words in SETTLED else {0, 3}), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in words:
        assert json.loads(done.stdout)["schema"].startswith("dbguard.")


def test_what_goes_on_for_ever_ends_with_ctrl_c(site: Site) -> None:
    words = [site.host.bin / "dbguardctl", *next(iter(ENDLESS))[1:]]
    with subprocess.Popen(words, env=site.host.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130


@pytest.mark.parametrize("words", [words for words in typed("dbguardd") if "run" not in words], ids=" ".join)
def test_the_daemon_starts_as_the_page_says(words: tuple[str, ...], tmp_path: Path) -> None:
    """Paths of an installed host are read below a directory of the test."""
    below = [str(tmp_path / word.lstrip("/")) if word.startswith("/") else word for word in words[1:]]
    (tmp_path / "policy.toml").write_text("version = 1\n")
    (tmp_path / "policy.toml").chmod(0o600)
    if "--check-config" in below:
        below += ["--policy", "policy.toml"]
    env = {"PATH": os.environ["PATH"]}
    argv = [Host(tmp_path).bin / "dbguardd", *below]
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        told = b""
        for line in process.stdout:
            told += line
            if b"daemon.ready" in line:
                process.terminate()
    assert process.returncode == 0, told
    assert b"ready" in told or b"ok" in told


@pytest.mark.parametrize("words", [words for words in typed("dbguardd") if "restore" in words], ids=" ".join)
def test_a_job_by_hand_as_the_page_says(words: tuple[str, ...], tmp_path: Path) -> None:
    """The disaster of the pages: the daemon is gone, its policy, state directory and key are there."""
    host = Host(tmp_path)
    seed(tmp_path / "app.db", bookings=300, documents=10)
    with host.daemon():
        assert host.run("protect", str(tmp_path / "app.db"), capture_output=True).returncode == 0
    (tmp_path / "app.db").unlink()
    names = {"/mnt/old/dbguard": str(host.state), "/var/lib/app/again.db": str(tmp_path / "srv.db")}
    state = [] if "--state" in words else ["--state", host.state]
    argv = [host.bin / "dbguardd", "--policy", host.policy, *state, *(names.get(word, word) for word in words[1:])]
    done = subprocess.run(argv, env=host.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "srv.db").exists()


# ------------------------------------------------------------------------------------------------ completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_read_by_its_shell(shell: str, site: Site, program) -> None:  # noqa: ANN001
    script = site.host.run("completion", shell, capture_output=True, text=True).stdout
    assert "_DBGUARDCTL_COMPLETE" in script
    read = subprocess.run([program(shell), "-n"], input=script, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("sta", "status"), ("list ", "app"), ("key rec", "recovery-sheet"), ("list app --w", "--why")],
)
def test_completion_asks_the_daemon(line: str, expected: str, site: Site) -> None:
    words = ["dbguardctl", *line.split(" ")]
    more = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_DBGUARDCTL_COMPLETE": "bash_complete"}
    environment = {**site.host.environment, **more}
    done = subprocess.run([site.host.bin / "dbguardctl"], env=environment, capture_output=True, text=True, check=False)
    assert expected in {row.partition(",")[2] for row in done.stdout.splitlines()}, done
