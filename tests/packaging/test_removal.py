"""What the package says when it goes: where the backups are, and what the key that stays opens."""

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"


@pytest.fixture
def gone(tmp_path):
    """Run the script of the Debian package on a machine that is a directory."""
    script = (PACKAGING / "debian" / "dbguard.postrm").read_text()
    script = script.replace("/var/lib/dbguard", f"{tmp_path}/var").replace("/etc/dbguard", f"{tmp_path}/etc")

    def run(what: str) -> str:
        done = subprocess.run(["sh", "-c", script, "postrm", what], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_a_storage_elsewhere_and_what_opens_it_are_named(gone, tmp_path):
    (tmp_path / "etc" / "conf.d").mkdir(parents=True)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "machine.key").touch()
    (tmp_path / "etc" / "policy.toml").write_text(
        '# path = "/no"\n[storage.local]\ntype = "directory"\npath = "/mnt/usb"   # a disk\n[database.app]\n'
        'path = "/var/lib/app/app.db"\n'
    )
    (tmp_path / "etc" / "conf.d" / "far.toml").write_text(f"[storage.far]\npath = '/mnt/far'\n[storage.own]\n"
                                                          f'path = "{tmp_path}/var/more"\n')  # fmt: skip
    assert f"{tmp_path}/etc, /mnt/far, /mnt/usb." in gone("remove")
    (tmp_path / "etc" / "policy.toml").unlink()  # as dpkg does with its own files, before it purges
    said = gone("purge")
    assert "backups are in another place, too: /mnt/usb\n" in said and "/mnt/far\n" in said
    assert "machine.key opens them" in said and "app.db" not in said and "/no" not in said
    assert "shows those in" not in said  # there is none here
    assert "and the key with it, which opens storages in other places as well" in said
    assert [path.name for path in (tmp_path / "var").iterdir()] == ["machine.key"]
    shutil.rmtree(tmp_path / "var")


def test_what_lies_here_alone_is_shown_again_without_a_policy(gone, tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "var" / "store").mkdir(parents=True)
    assert gone("remove").endswith(f"stay: {tmp_path}/var, {tmp_path}/etc.\n")
    said = gone("purge")
    assert f"dbguard shows those in {tmp_path}/var/store: dbguardctl status." in said
    assert "another place" not in said


def test_both_packages_look_for_it_in_the_same_way():
    scripts = ((PACKAGING / name).read_text() for name in ("debian/dbguard.postrm", "rpm/dbguard.spec"))
    looked, same = ({line.strip(" |\\") for line in text.splitlines() if "awk -F" in line} for text in scripts)
    assert looked == same != set()
