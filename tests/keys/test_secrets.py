"""Secrets do not show themselves, and are read only from where nobody else can read them."""

import copy
import os
import pickle
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

from dbguardd.errors import GuardError, PolicyInvalid, PolicyUnsafe, SecretMissing
from dbguardd.keys import Secret, read_secret


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(b"hunter2")
    texts = [repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", repr([secret]), "%s" % secret]  # noqa: UP031
    try:
        raise ValueError(secret)
    except ValueError as error:
        texts.append("".join(traceback.format_exception(error)))
        texts.append("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
    assert all("***" in text for text in texts)
    assert not any("hunter2" in text for text in texts[:-1])
    assert secret == Secret(b"hunter2") != Secret(b"hunter3")
    assert secret != b"hunter2"
    for act in (pickle.dumps, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            act(secret)
    assert secret.reveal() == b"hunter2"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"pass word\n")
    path.chmod(0o600)
    return path


def test_a_file(file: Path) -> None:
    assert read_secret({"file": str(file), "credential": None}).reveal() == b"pass word"
    for content, secret in ((b"x", b"x"), (b"x\r\n", b"x"), (b" x \n\n", b" x \n"), (b"\0\xff", b"\0\xff")):
        file.write_bytes(content)
        assert read_secret({"file": str(file)}).reveal() == secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_get_at(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(PolicyUnsafe):
        read_secret({"file": str(file)})


def test_files_that_hold_no_secret(file: Path, tmp_path: Path) -> None:
    for content in (b"", b"\n"):
        file.write_bytes(content)
        with pytest.raises(SecretMissing):
            read_secret({"file": str(file)})
    file.write_bytes(bytes(70_000))
    with pytest.raises(PolicyUnsafe):
        read_secret({"file": str(file)})
    with pytest.raises(SecretMissing):
        read_secret({"file": str(tmp_path / "none")})
    with pytest.raises(PolicyUnsafe):
        read_secret({"file": str(tmp_path)})


def test_a_credential(file: Path, tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    file.chmod(0o440)
    assert read_secret({"credential": "secret"}, environ).reveal() == b"pass word"
    for name, where in (("none", environ), ("secret", {}), ("../secret", environ), ("a/b", environ)):
        with pytest.raises(SecretMissing):
            read_secret({"credential": name}, where)


def test_a_command() -> None:
    assert read_secret({"command": ["/bin/echo", "$HOME; pass"]}).reveal() == b"$HOME; pass"
    seen = read_secret({"command": ["/usr/bin/env"]}, {"HOME": "/h", "TOKEN": "x", "LD_PRELOAD": "/x"}).reveal()
    assert {line.partition("=")[0] for line in seen.decode().split("\n")} == {"PATH", "LANG", "HOME"}


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(3)",
        "pass",
        "print()",
        "import sys; sys.stdout.write('x' * 70000)",
        "import sys\nwhile True: sys.stdout.write('x' * 70000)",
        "import os; os.kill(os.getpid(), 9)",
        "import sys; print('hunter2'); sys.exit('hunter2')",
    ],
)
def test_a_command_that_prints_no_secret(script: str) -> None:
    with pytest.raises(SecretMissing) as caught:
        read_secret({"command": [sys.executable, "-I", "-S", "-c", script]})
    assert "hunter2" not in caught.value.message + caught.value.detail


@pytest.mark.parametrize("closing", ["", "import os; os.close(1)\n"])
def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path, closing: str) -> None:
    pids = tmp_path / "pids"
    script = f"""{closing}import os, signal
child = os.fork()
with open({str(pids)!r}, "a") as file: file.write(f"{{os.getpid()}} ")
while True: signal.pause()"""
    for seconds in (1, 10, 100):
        with pytest.raises(SecretMissing) as caught:
            read_secret({"command": [sys.executable, "-I", "-S", "-c", script]}, timeout_seconds=seconds)
        assert f"{seconds} s" in caught.value.detail
        if pids.exists():  # else it was ended before it had begun
            break
    deadline = time.monotonic() + 120
    for pid in map(int, pids.read_text().split()):
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                break
            if state == "Z":
                break
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{pid} is still there")


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SecretMissing):
        read_secret({"command": ["/nonexistent/program"]})


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"file": None},
        {"file": "/a", "credential": "b"},
        {"file": 3},
        {"command": "/bin/echo x"},
        {"command": []},
        {"command": ["echo", "x"]},
        {"value": "secret in the clear"},
    ],
)
def test_what_is_no_reference(reference: dict[str, object]) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read_secret(reference)
    assert "clear" not in str(caught.value.problem())
    assert isinstance(caught.value, GuardError)
