"""The .rpm: the files of the .deb, and the same life. What stands for a system of that kind is a Debian with rpm.

Such an rpm knows of no other package, so that it is told not to look for what ours requires: that is read here.
"""

import re
import shutil
import subprocess

import pytest

import dbguardd
from tests.packaging import build, trees
from tests.packaging.applications import application, count, held
from tests.packaging.machine import booted
from tests.process.house import until

NEXT = "99.0"
RENAMED = f"""
mkdir /srv/source && cp -r /source/[a-zA-Z]* /srv/source && cd /srv/source
cat > packaging/stage << 'END'
#!/bin/sh -eu
mkdir -p "$1" && rpm2archive - < /out/first | tar --extract --gzip --directory "$1"
gunzip "$1"/usr/share/man/man*/*
cd "$1"/usr/lib/dbguard/lib/python3*/site-packages
sed -i 's/^__version__ = .*/__version__ = "{NEXT}"/' dbguardd/__init__.py
END
sed -i 's/^__version__ = .*/__version__ = "{NEXT}"/' dbguardd/__init__.py
packaging/build-rpm . /wheels /out
"""
"""Builds what comes after /out/first: nothing is compiled again, and one file has another version."""

ACCEPTED = {
    "no-signature": "whoever publishes it signs it",
    "invalid-license": "the list is older than the names of SPDX",
    "manpage-not-compressed": "with gzip, as everywhere but at Mageia, for whom this rpmlint speaks",
    "no-manual-page-for-binary": "for the same reason; the pages are compared with those of the .deb below",
    "non-standard-uid": "conf.d, where `dbguardctl protect` has the daemon write",
    "non-standard-gid": "likewise",
    "dangerous-command-in-%posttrans": "rm of the mark that the daemon ran before the upgrade",
    "dangerous-command-in-%preun": "rm of the list of storages elsewhere, before it is written anew",
    "dangerous-command-in-%postun": "rm of that list, when it was shown",
    "files-duplicate": "libraries, each with its licence and its empty __init__.py",
    "file-not-in-%lang": "translations in a library, which look like those of a system",
    "binary-or-shlib-calls-gethostbyname": "the standard library of Rust in a library; no code of ours resolves names",
}


@pytest.fixture(scope="session", params=["bookworm"])
def suite(request):
    """The .rpm is for one Python like the .deb; one is enough to prove how it installs."""
    if missing := trees.missing():
        pytest.skip(f"NOT RUN, no package was built, installed or booted: {missing}")
    return request.param


@pytest.fixture(scope="module")
def deb(suite):
    """The .deb for the same release."""
    return build.package(suite, "deb")


@pytest.fixture(scope="module")
def package(suite):
    """The .rpm."""
    return build.package(suite, "rpm")


@pytest.fixture(scope="module")
def newer(suite, package, tmp_path_factory):
    """The .rpm of the version that comes after this one: the same files, of which one names another version."""
    out = tmp_path_factory.mktemp("newer") / "out"
    out.mkdir()
    shutil.copy(package, out / "first")
    done = build.in_build_tree(suite, build.wheels(suite), out, "sh", "-ec", RENAMED)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.rpm")
    return built


@pytest.fixture(scope="module")
def machine(suite, package, tmp_path_factory):
    """A machine with rpm, and dbguard installed by it."""
    with booted(trees.tree(suite, trees.MACHINE), suite, tmp_path_factory.mktemp("rpm")) as machine:
        rpm(machine, "--install", machine.put(package, f"/root/{package.name}"))
        yield machine


@pytest.fixture(scope="module")
def app(machine):
    """The path of a database that is protected."""
    path = application(machine, "app")
    assert machine.does("protect", path)["database"] == "app"
    return path


def rpm(machine, *words):
    """Change what is installed."""
    return machine.run("rpm", "--force-debian", "--nodeps", *words)


def test_rpmlint_complains_of_what_is_accepted_only(suite, package, tmp_path):
    out = tmp_path / "lint"
    out.mkdir()
    shutil.copy(package, out)
    said = build.in_build_tree(suite, build.wheels(suite), out, "rpmlint", f"/out/{package.name}")
    complaints = [line for line in said.stdout.splitlines() if re.match(r"\S+: [EW]: ", line)]
    assert {line.split()[2] for line in complaints} == set(ACCEPTED), said.stdout + said.stderr


def test_it_has_the_files_of_the_deb(machine, package, deb):
    named = machine.run("rpm", "--query", "--queryformat", r"[%{FILEMODES:perms} %{FILENAMES}\n]", "dbguard").out
    listed = subprocess.run(["dpkg-deb", "--contents", deb], check=True, capture_output=True, text=True).stdout
    ours = {common(line.split(" ", 1)[1]) for line in named.splitlines() if not line.startswith("d")}
    theirs = {common(line.split()[5][1:]) for line in listed.splitlines() if not line.startswith("d")}
    assert ours == theirs
    assert {"/etc/dbguard/policy.toml", "/usr/bin/dbguardd", "/usr/share/man/man8/dbguardd.8.gz"} <= ours


def common(path):
    """Return a path as either kind of system has it; nothing for what only one of them wants."""
    own = ("/usr/share/licenses/", "/usr/share/lintian/", "/usr/share/python3/")
    if path.startswith(own) or "__pycache__" in path:
        return None
    if path.startswith("/usr/share/doc/dbguard/") and "/examples/" not in path:
        return None
    path = re.sub("^/lib/", "/usr/lib/", path)
    return path.replace("/zsh/vendor-completions/", "/zsh/site-functions/")


def test_it_requires_the_system_and_not_its_own_libraries(machine, package):
    required = machine.run("rpm", "--query", "--requires", "dbguard").out.split()
    python = f"/usr/bin/python{build.PYTHONS[machine.suite]}"
    assert {python, "systemd", "tzdata", "libc.so.6()(64bit)"} <= set(required)
    assert not [name for name in required if "dist(" in name or name.startswith("/usr/lib/dbguard")]
    provided = machine.run("rpm", "--query", "--provides", "dbguard").out
    assert {line.split(" = ")[0].split("(")[0] for line in provided.splitlines()} == {"dbguard", "config"}
    assert machine.run("rpm", "--query", "--queryformat", "%{VERSION}", "dbguard").out == dbguardd.__version__


def test_installed_it_is_idle_and_enabled(machine):
    assert machine.show("ActiveState") == "active", machine.why()
    assert machine.show("UnitFileState") == "enabled"
    assert machine.does("status")["databases"] == []


def test_it_proves_a_database_and_changes_none_of_its_own_files(machine, app):
    (row,) = [row for row in machine.does("status")["databases"] if row["name"] == "app"]
    assert row["state"] == "safe"
    assert machine.run("rpm", "--verify", "--nodeps", "dbguard").out == ""


def test_an_upgrade_in_the_middle_of_a_backup_repeats_it(machine, app, newer):
    policy = machine.path("/etc/dbguard/policy.toml")
    policy.write_text(policy.read_text() + '\n[database.app]\nlock_timeout = "1h"\n')
    machine.does("reload")
    before = len(machine.does("list", "app")["backups"])
    with held(machine, app, "app"):
        job = machine.ctl("backup", "app", "--no-wait").out.strip()
        until(lambda: machine.job(job)["step"] == "snapshot", machine.why)
        rpm(machine, "--upgrade", machine.put(newer, f"/root/{newer.name}"))
        assert machine.show("ActiveState") == "active", machine.why()
        assert machine.does("status")["version"] == NEXT
        assert machine.job(job)["state"] == "interrupted"
    until(lambda: len(machine.does("list", "app")["backups"]) == before + 1, machine.why)
    assert "lock_timeout" in policy.read_text()
    assert not machine.path("/run/dbguardd.upgraded").exists()


def test_an_upgrade_leaves_a_daemon_stopped_that_was_stopped(machine, package):
    machine.run("systemctl", "stop", "dbguardd")
    rpm(machine, "--upgrade", "--oldpackage", f"/root/{package.name}")
    assert machine.show("ActiveState") == "inactive"
    machine.run("systemctl", "start", "dbguardd")
    assert machine.does("status")["version"] == dbguardd.__version__


def test_erased_it_leaves_what_cannot_be_made_again(machine, app):
    kept = sorted(path.name for path in machine.path("/var/lib/dbguard").iterdir())
    said = rpm(machine, "--erase", "dbguard").out
    assert "/var/lib/dbguard" in said
    assert machine.show("ActiveState") == "inactive"
    assert machine.show("LoadState") == "not-found"
    for gone in ("/usr/lib/dbguard", "/usr/bin/dbguardctl", "/usr/share/doc/dbguard", "/run/dbguard/api.sock",
                 "/etc/systemd/system/multi-user.target.wants/dbguardd.service"):  # fmt: skip
        assert machine.run("find", gone, check=False).out == ""
    left = sorted(path.name for path in machine.path("/var/lib/dbguard").iterdir())
    assert {"machine.key", "store", "catalog.db"} <= set(left) <= set(kept)
    assert machine.path("/etc/dbguard/conf.d/app.toml").exists()
    assert machine.path("/etc/dbguard/policy.toml.rpmsave").exists()  # somebody had changed it
    assert count(machine, app, user="app") == 500


def test_installed_again_it_goes_on_where_it_was(machine, package, app):
    rpm(machine, "--install", f"/root/{package.name}")
    (row,) = machine.does("status")["databases"]
    assert (row["name"], row["state"]) == ("app", "safe")
    assert machine.does("backup", "app")["proof"]["grade"] == "proven"
