"""Reading: which files are believed, how they are merged, and where each key came from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dbguardd.errors import PolicyInvalid, PolicyUnsafe
from dbguardd.policy import check, load
from dbguardd.policy.accounts import gid_of_group, uid_of_user

ME = os.geteuid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    write(tmp_path / "policy.toml", 'version = 1\n[database.app]\nengine = "sqlite"\npath = "/srv/app.db"\n')
    return tmp_path


def write(file: Path, text: str, mode: int = 0o644) -> Path:
    file.write_text(text)
    file.chmod(mode)
    return file


def test_drop_ins_are_merged_in_name_order(folder):
    write(
        folder / "conf.d/20-b.toml",
        '[database.app]\nkeep = { last = 2 }\n[database.b]\nengine = "sqlite"\npath = "/b"\n',
    )
    write(folder / "conf.d/10-a.toml", '[database.app]\nkeep = { last = 1, daily = 9 }\njitter = "1s"\n')
    write(folder / "conf.d/ignored.toml.bak", "not toml at all [")
    write(folder / "conf.d/.hidden.toml", "not toml at all [")
    loaded = load(folder / "policy.toml", ME)
    app = loaded.policy.guarded("app")
    assert (app.keep.last, app.keep.daily, app.jitter.total_seconds()) == (2, 0, 1.0)  # a table in a value goes whole
    assert loaded.policy.names() == ["app", "b"]
    assert [Path(file).name for file in loaded.files] == ["policy.toml", "10-a.toml", "20-b.toml"]
    assert {key: Path(place).name for key, place in loaded.origins.items() if key.count(".") == 2} == {
        "database.app.engine": "policy.toml:3",
        "database.app.path": "policy.toml:4",
        "database.app.keep": "20-b.toml:2",
        "database.app.jitter": "10-a.toml:3",
        "database.b.engine": "20-b.toml:4",
        "database.b.path": "20-b.toml:5",
    }


def test_a_later_file_wins_in_tables_without_names(folder):
    write(folder / "policy.toml", 'version = 1\n[defaults]\nkey = "main"\nwindow = "1h"\n[daemon]\nmax_jobs = 3\n')
    write(folder / "conf.d/a.toml", 'version = 1\n[defaults]\nwindow = "2h"\n')
    policy = load(folder / "policy.toml", ME).policy
    assert (policy.defaults.window.total_seconds(), policy.defaults.key, policy.daemon.max_jobs) == (7200.0, "main", 3)


def test_no_file(tmp_path):
    with pytest.raises(PolicyInvalid) as caught:
        load(tmp_path / "policy.toml", ME)
    assert caught.value.message.endswith("policy.toml: cannot be read")


def test_what_is_wrong_is_raised_with_all_mistakes(folder):
    write(folder / "conf.d/a.toml", '[database.app]\nkeeep = 1\n[database.b]\nengine = "sqlite"\n')
    with pytest.raises(PolicyInvalid) as caught:
        load(folder / "policy.toml", ME)
    assert [mistake["code"] for mistake in caught.value.facts["mistakes"]] == [
        "config/unknown-key",
        "config/missing-key",
    ]


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_not_believed(folder, mode):
    for name in ("policy.toml", "conf.d/a.toml"):
        file = write(folder / name, "version = 1\n", mode)
        with pytest.raises(PolicyUnsafe) as caught:
            load(folder / "policy.toml", ME)
        assert caught.value.message == f"{file}: other users may write to it"
        assert caught.value.hints == (f"chmod go-w {file}",)
        file.chmod(0o600)


@pytest.mark.parametrize("name", [".", "conf.d"])
def test_a_directory_that_others_may_write_is_not_believed(folder, name):
    (folder / name).chmod(0o777)
    with pytest.raises(PolicyUnsafe):
        load(folder / "policy.toml", ME)
    (folder / name).chmod(0o1777)  # sticky: the files in it must still belong to the right people
    load(folder / "policy.toml", ME)


@pytest.mark.skipif(ME != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_is_not_believed(folder):
    os.chown(folder / "policy.toml", 12345, 12345)
    with pytest.raises(PolicyUnsafe) as caught:
        load(folder / "policy.toml", 4711)
    assert caught.value.message.endswith("has another owner")
    load(folder / "policy.toml", 12345)


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "conf.d/pipe.toml", 0o600)
    with pytest.raises(PolicyUnsafe) as caught:
        load(folder / "policy.toml", ME)
    assert caught.value.message.endswith("pipe.toml: not a regular file")


def test_a_directory_is_no_file(folder):
    (folder / "conf.d/x.toml").mkdir()
    with pytest.raises(PolicyUnsafe):
        load(folder / "policy.toml", ME)


def test_a_dangling_link_is_an_error_and_no_traceback(folder):
    (folder / "conf.d/x.toml").symlink_to("nowhere")
    with pytest.raises(PolicyInvalid):
        load(folder / "policy.toml", ME)


def test_endless_files_are_not_read_to_the_end(folder):
    with (folder / "conf.d/x.toml").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "conf.d/x.toml").chmod(0o600)
    policy, _, (mistake,) = check(folder / "policy.toml", ME)
    assert policy is None
    assert mistake.message == "the file is larger than 256 KiB"


def test_windows_line_ends(folder):
    write(folder / "policy.toml", 'version = 1\r\n[defaults]\r\nkeeep = 1\r\nkey = "main"\r\n')
    _, _, (mistake,) = check(folder / "policy.toml", ME)
    assert (mistake.line, mistake.column, mistake.source) == (3, 1, "keeep = 1")


def test_warnings_do_not_stop_a_policy(folder):
    write(folder / "conf.d/a.toml", '[database.app]\nobjective.rpo = "1h"\n')
    loaded = load(folder / "policy.toml", ME)
    assert [(warning.severity, warning.code, warning.line) for warning in loaded.warnings] == [
        ("warning", "config/rpo", 2)
    ]


@pytest.mark.skipif(ME == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_read(folder):
    (folder / "conf.d").chmod(0o000)
    with pytest.raises(PolicyInvalid):
        load(folder / "policy.toml", ME)
    (folder / "conf.d").chmod(0o700)


def test_accounts_of_this_host():
    assert uid_of_user("root") == 0
    assert gid_of_group("root") == 0
    for look_up in (uid_of_user, gid_of_group):
        with pytest.raises(PolicyInvalid):
            look_up("nobody-is-called-so")
