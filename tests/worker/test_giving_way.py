"""A worker gives way to applications as its daemon does, although its session is new: the kernel compares sessions."""

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dbguardd.niceness import TRIES, WAIT_SECONDS, lower_session
from dbguardd.worker.start import _end, _start


def test_the_session_of_a_half_has_the_niceness_of_its_daemon() -> None:
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel compares processes only")

    async def begin() -> str:
        here, there = socket.socketpair()
        with here, there:
            half = await _start("engine", there, {}, os.geteuid())
            try:
                return Path(f"/proc/{half.pid}/autogroup").read_text().split()[-1]
            finally:
                await _end(half)

    def nice() -> tuple[str, int]:
        os.nice(7)  # of this thread alone
        return asyncio.run(begin()), os.getpriority(os.PRIO_PROCESS, 0)

    with ThreadPoolExecutor(1) as pool:
        session, own = pool.submit(nice).result()
    assert int(session) == own


def test_a_session_that_is_gone_or_not_to_be_lowered_is_not_asked_for_again() -> None:
    assert lower_session(2**22 + 1, 5)
    assert lower_session(os.getpid(), 0)
    assert TRIES * WAIT_SECONDS < 2
