"""A fake daemon, and the real dbguardctl against it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.surface.fake import FakeDaemon

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path)
    yield fake
    fake.stop()
    assert fake.misfits == []


def environment(socket: Path | str, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "TZ": "Europe/Berlin", "COLUMNS": "120",
        "DBGUARD_SOCKET": str(socket), **more,
    }  # fmt: skip


@pytest.fixture
def ctl(daemon: FakeDaemon) -> Ctl:
    def run(*words: str, input: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dbguardctl", *words], env=environment(daemon.socket, **more), text=True,
            input=input if input is not None else "", capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def inside(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """dbguardctl in this process: quicker, for everything that needs no process of its own."""
    from dbguardctl.__main__ import main

    for name, value in environment(daemon.socket).items():
        monkeypatch.setenv(name, value)
    time.tzset()
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(words)
