"""What only a directory can get wrong: links, permissions, room, failing system calls, files nobody finished."""

import errno
import os
import resource
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dbguardd.errors import Conflict, Damaged, Degraded, NoSpace, ObjectMissing, Unreachable, Unsupported
from dbguardd.storage import Directory, Limits
from dbguardd.storage.calls import Calls
from dbguardd.storage.publish import STALE_SECONDS, TEMPORARY, owner_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def failing(number: int, *, times: int = 1, only: Callable[[int], bool] = lambda _fd: True) -> Callable[[int], None]:
    """An fsync that fails `times` times for the files that `only` accepts."""
    left = [times]

    def fsync(fd: int) -> None:
        if left[0] and only(fd):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        os.fsync(fd)

    return fsync


def is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def is_file(fd: int) -> bool:
    return not is_folder(fd)


# ------------------------------------------------------------------------------------------------- the place itself


def test_a_missing_directory_is_not_made_by_accident(root: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        Directory(root)
    assert "No such file" in caught.value.detail
    assert not root.exists()


def test_a_new_directory_is_private_and_can_be_opened_again(root: Path) -> None:
    Directory(root, create=True).put("a/b", b"x")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, root / "a", root / "a/b")] == [0o700, 0o700, 0o400]
    assert Directory(root, create=True).get("a/b") == b"x"


def test_a_deleted_directory_is_unreachable_not_empty(root: Path) -> None:
    storage = Directory(root, create=True)
    root.rmdir()
    for act in (lambda: list(storage.list("")), lambda: storage.get("a"), lambda: storage.put("a/b", b"")):
        with pytest.raises(Unreachable):
            act()
    with pytest.raises(Unreachable):
        storage.delete("a")


def test_no_file_descriptor_is_left_behind(root: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    storage = Directory(root, create=True)
    storage.put("a/b", b"x")
    with pytest.raises(Conflict):
        storage.put("a/b", b"y")
    with pytest.raises(ObjectMissing):
        storage.get("a/c")
    with pytest.raises(Damaged):
        storage.get("a/b", 9)
    next(storage.list(""))
    storage.probe()
    del storage
    assert set(os.listdir("/proc/self/fd")) == before


def test_links_inside_are_refused(root: Path, tmp_path: Path) -> None:
    storage = Directory(root, create=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_bytes(b"secret")
    (root / "packs").symlink_to(tmp_path / "elsewhere")
    (root / "object").symlink_to(tmp_path / "elsewhere/secret")
    for act in (lambda: storage.get("packs/secret"), lambda: storage.put("packs/x", b"")):
        with pytest.raises(Unreachable):
            act()
    with pytest.raises((Damaged, Unreachable)):
        storage.get("object")
    with pytest.raises(Conflict):
        storage.put("object", b"secret")
    for prefix in ("", "packs/", "object"):
        with pytest.raises(Unreachable):
            list(storage.list(prefix))
    assert os.listdir(tmp_path / "elsewhere") == ["secret"]


def test_a_planted_pipe_does_not_hang_anyone(root: Path) -> None:
    storage = Directory(root, create=True)
    os.mkfifo(root / "pipe", 0o600)
    with pytest.raises(Damaged):
        storage.get("pipe")
    with pytest.raises(Damaged):
        storage.stat("pipe")
    with pytest.raises(Conflict):
        storage.put("pipe", b"")


def test_a_file_that_shrank_is_damage_and_a_foreign_one_is_no_object(root: Path) -> None:
    storage = Directory(root, create=True)
    storage.put("a", b"0123")
    os.chmod(root / "a", 0o600)
    os.truncate(root / "a", 2)
    with pytest.raises(Damaged):
        storage.get("a", 0, 4)
    with pytest.raises(Conflict):
        storage.put("a", b"0123")
    (root / "lost+found").mkdir()
    (root / ".hidden").write_bytes(b"")
    assert [entry.name for entry in storage.list("")] == ["a"]


# ------------------------------------------------------------------------------------------------- room


def test_keep_free_is_kept(root: Path) -> None:
    disk = os.statvfs(root.parent)
    free = disk.f_bavail * disk.f_frsize
    storage = Directory(root, create=True, limits=Limits.of(2 * free, None))
    with pytest.raises(NoSpace) as caught:
        storage.put("a", b"x" * 100)
    assert caught.value.facts["needed_bytes"] == 100
    assert caught.value.facts["keep_free_bytes"] == 2 * free
    assert str(2 * free) in caught.value.detail
    assert os.listdir(root) == []


def test_a_full_file_system_is_told_without_a_limit_that_does_not_exist(root: Path) -> None:
    def statvfs(fd: int) -> os.statvfs_result:
        values = list(os.fstatvfs(fd))
        values[0:5] = [4096, 1000, 100_000, 50_000, 0]
        return os.statvfs_result(values)

    storage = Directory(root, create=True, calls=Calls(statvfs=statvfs))
    with pytest.raises(NoSpace, match="the file system of the storage is full$") as caught:
        storage.put("a", b"x" * 100)
    assert caught.value.detail == "100 bytes are needed, 0 bytes are free."


def test_a_share_of_the_file_system_is_kept(root: Path) -> None:
    def statvfs(fd: int) -> os.statvfs_result:
        values = list(os.fstatvfs(fd))
        values[0:5] = [4096, 1000, 100_000, 50_000, 10_000]  # bsize, frsize, blocks, bfree, bavail
        return os.statvfs_result(values)

    storage = Directory(root, create=True, limits=Limits.of("9.5%", None), calls=Calls(statvfs=statvfs))
    storage.put("a", bytes(500_000))
    with pytest.raises(NoSpace):
        storage.put("b", bytes(500_001))
    found = storage.probe()
    assert (found.free_bytes, found.total_bytes, found.keep_free_bytes) == (10_000_000, 100_000_000, 9_500_000)


def test_max_bytes_counts_what_is_there_and_what_went(root: Path) -> None:
    Directory(root, create=True).put("before", bytes(600))
    storage = Directory(root, limits=Limits.of(0, 1000))
    storage.put("a", bytes(400))
    storage.put("a", bytes(400))
    with pytest.raises(NoSpace) as caught:
        storage.put("b", b"x")
    assert caught.value.facts["used_bytes"] == 1000
    Directory(root).delete("before")  # someone else made room
    storage.put("b", bytes(600))
    storage.delete("b")
    storage.put("c", bytes(100))
    found = Directory(root, limits=Limits.of(0, 10_000)).probe()
    assert (found.free_bytes, found.total_bytes) == (9_500, 10_000)


def test_a_file_size_limit_is_no_room_and_leaves_nothing(root: Path) -> None:
    storage = Directory(root, create=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NoSpace) as caught:
            storage.put("a/b", bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.facts["needed_bytes"] == 200_000
    assert list(storage.list("")) == []
    storage.put("a/b", bytes(200_000))


@pytest.fixture
def tiny(tmp_path: Path):
    """A file system of 1 MiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "dbguard-test", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("nameless", [True, False])
def test_a_full_file_system_refuses_and_keeps_what_it_has(tiny: Path, nameless: bool) -> None:
    large = os.statvfs(tiny.parent)  # a file system that promises room, so that the kernel refuses in mid-write
    storage = Directory(tiny / "store", create=True, calls=Calls(statvfs=lambda _fd: large), nameless=nameless)
    storage.put("a", bytes(700_000))
    for limits in (None, Limits(keep_free=1)):
        with pytest.raises(NoSpace):
            storage.put("b", [bytes(100_000)] * 4)
        with pytest.raises(NoSpace):
            Directory(tiny / "store", limits=limits, nameless=nameless).put("b", bytes(400_000))
    assert [entry.name for entry in storage.list("")] == ["a"]
    assert os.listdir(tiny / "store") == ["a"]
    storage.delete("a")
    storage.put("b", bytes(400_000))
    assert storage.get("b") == bytes(400_000)


# ------------------------------------------------------------------------------------------------- durability


@pytest.mark.parametrize("nameless", [True, False])
def test_a_failed_fsync_is_not_repeated_on_the_same_file(root: Path, nameless: bool) -> None:
    files: list[int] = []
    broken = failing(errno.EIO, only=is_file)

    def fsync(fd: int) -> None:
        if is_file(fd):
            files.append(os.fstat(fd).st_ino)
        broken(fd)

    # The inode of a file that is gone may be used again at once; an open one cannot.
    kept: list[int] = []
    calls = Calls(fsync=fsync, close=lambda fd: kept.append(os.dup(fd)) or os.close(fd))
    storage = Directory(root, create=True, calls=calls, nameless=nameless)
    storage.put("a", b"x")
    assert len(files) == len(set(files)) == 2
    assert os.listdir(root) == ["a"]
    assert storage.get("a") == b"x"
    for fd in kept:
        os.close(fd)


@pytest.mark.parametrize("nameless", [True, False])
def test_after_two_failed_fsyncs_nothing_is_stored_any_more(root: Path, nameless: bool) -> None:
    calls = Calls(fsync=failing(errno.EIO, times=2, only=is_file))
    storage = Directory(root, create=True, calls=calls, nameless=nameless)
    for name in ("a", "a", "b"):
        with pytest.raises(Degraded):
            storage.put(name, b"x")
    assert os.listdir(root) == []
    Directory(root).put("a", b"x")
    assert storage.get("a") == b"x"


def test_a_directory_that_cannot_be_synced_is_not_asked_twice(root: Path) -> None:
    Directory(root, create=True)
    storage = Directory(root, calls=Calls(fsync=failing(errno.EIO, only=is_folder)))
    for _ in range(2):  # the second fsync would succeed, and prove nothing
        with pytest.raises(Degraded):
            storage.put("a", b"x")


def test_what_is_there_already_and_cannot_be_synced_is_not_acknowledged(root: Path) -> None:
    Directory(root, create=True).put("a", b"x")
    storage = Directory(root, calls=Calls(fsync=failing(errno.EIO, only=is_file)))
    for _ in range(2):
        with pytest.raises(Degraded):
            storage.put("a", b"x")


def test_a_name_that_is_taken_while_we_write(root: Path) -> None:
    def link(*args: object, **more: object) -> None:
        if not (root / "a").exists():
            Directory(root).put("a", b"winner")
        os.link(*args, **more)  # type: ignore[arg-type]

    for nameless in (True, False):
        storage = Directory(root, create=True, calls=Calls(link=link), nameless=nameless)
        with pytest.raises(Conflict):
            storage.put("a", b"loser")
        assert os.listdir(root) == ["a"]
        storage.delete("a")
        storage.put("a", b"winner")
        storage.delete("a")


def test_a_file_that_shrinks_while_it_is_read_is_not_returned_short(root: Path) -> None:
    from dbguardd.storage.directory import _pieces

    (root.parent / "file").write_bytes(b"01234567")
    with (root.parent / "file").open("r+b") as file:
        pieces = _pieces(file.fileno(), 0, 12)
        assert next(pieces) == b"01234567"
        with pytest.raises(OSError, match="shorter"):
            next(pieces)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_directories_is_used_and_told(root: Path, number: int) -> None:
    storage = Directory(root, create=True, calls=Calls(fsync=failing(number, times=100, only=is_folder)))
    storage.put("a/b", b"x")
    assert storage.probe().durable is False
    assert Directory(root).probe().durable is True


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_at_fsync_is_no_room(root: Path, number: int) -> None:
    storage = Directory(root, create=True, calls=Calls(fsync=failing(number, only=is_file)))
    with pytest.raises(NoSpace) as caught:
        storage.put("a", b"x")
    assert caught.value.message == f"{root}: the file system of the storage has no room"
    assert caught.value.detail.startswith("a: ")
    storage.put("a", b"x")


def test_what_is_there_already_is_made_durable_too(root: Path) -> None:
    Directory(root, create=True).put("a/b", b"x")
    synced: list[int] = []

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        os.fsync(fd)

    Directory(root, calls=Calls(fsync=fsync)).put("a/b", b"x")
    assert {(root / name).stat().st_ino for name in ("", "a", "a/b")} <= set(synced)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("verb", ["open", "writev", "link", "mkdir", "unlink"])
def test_other_failures_are_unreachable_and_leave_nothing(root: Path, number: int, verb: str) -> None:
    def broken(*_args: object, **_more: object) -> int:
        raise OSError(number, os.strerror(number))

    Directory(root, create=True).put("old", b"")
    storage = Directory(root, calls=replace(Calls(), **{verb: broken}))
    with pytest.raises(Unreachable) as caught:
        storage.delete("old") if verb == "unlink" else storage.put("a/b", b"x")
    assert errno.errorcode[number] in caught.value.detail
    assert caught.value.hints[0].startswith("install -d -o ") is (number == errno.EACCES)
    assert [entry.name for entry in Directory(root).list("")] == ["old"]


def test_a_file_system_without_hard_links_is_said_to_be_one(root: Path) -> None:
    def link(*_args: object, **_more: object) -> None:
        raise OSError(errno.EPERM, "no")

    with pytest.raises(Unsupported):
        Directory(root, create=True, calls=Calls(link=link)).put("a", b"x")
    assert os.listdir(root) == []


def test_short_writes_are_gone_on_with(root: Path) -> None:
    storage = Directory(root, create=True, calls=Calls(writev=lambda fd, parts: os.write(fd, parts[0][:7])))
    data = [os.urandom(size) for size in (0, 1, 7, 8, 100, 0, 6)]
    storage.put("a", data)
    assert storage.get("a") == b"".join(data)


def test_without_nameless_files_it_falls_back(root: Path) -> None:
    flags_seen: list[int] = []

    def opened(path: str, flags: int, *args: object, **more: object) -> int:
        flags_seen.append(flags)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return os.open(path, flags, *args, **more)  # type: ignore[arg-type]

    storage = Directory(root, create=True, calls=Calls(open=opened))
    storage.put("a/b", b"x")
    storage.put("a/c", b"x")
    assert len(flags_seen) == 3  # it does not ask again
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for flags in flags_seen[1:])
    assert [entry.name for entry in storage.list("")] == ["a/b", "a/c"]
    assert os.listdir(root) == ["a"]


# ------------------------------------------------------------------------------------------------- orphans


def test_unfinished_files_of_the_dead_are_swept_those_of_the_living_are_not(root: Path) -> None:
    root.mkdir()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        mine, alive = owner_of(os.getpid()), owner_of(process.pid)
        hidden = f"{alive.rpartition('.')[0]}.0"  # whoever wrote it could not see itself in /proc
        names = {"mine": mine, "alive": alive, "reused": alive + "0", "foreign": f"{'0' * 12}.1.1", "hidden": hidden}
        paths = {key: root / f"{TEMPORARY}{key}-name-{owner}-00ff" for key, owner in names.items()}
        for path in [*paths.values(), root / ".tmp-", root / ".tmp-nonsense", root / ".other"]:
            path.write_bytes(b"")
        Directory(root)
        left = {path.name for path in root.iterdir()}
        assert left == {paths[key].name for key in ("mine", "alive", "foreign", "hidden")} | {
            ".tmp-",
            ".tmp-nonsense",
            ".other",
        }
        later = Calls(now=lambda: time.time() + STALE_SECONDS + 10)
        Directory(root, calls=later)
        assert {path.name for path in root.iterdir()} == {paths[key].name for key in ("mine", "alive", "hidden")} | {
            ".other"
        }
        process.communicate()
    Directory(root)
    assert {path.name for path in root.iterdir()} == {paths["mine"].name, ".other"}


def test_unfinished_files_are_no_objects(root: Path) -> None:
    seen: list[list[str]] = []
    storage = Directory(root, create=True)

    def link(*args: object, **more: object) -> None:
        seen.append([entry.name for entry in storage.list("")])
        os.link(*args, **more)  # type: ignore[arg-type]

    for number, nameless in enumerate((True, False)):
        Directory(root, calls=Calls(link=link), nameless=nameless).put(f"{number}", b"x")
    assert seen == [[], ["0"]]
