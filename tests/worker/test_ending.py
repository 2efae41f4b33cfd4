"""How a half ends: whatever it leaves behind, the job has an end and the daemon keeps nothing of it."""

import asyncio
import os
import signal
import sys

from dbguardd.worker.start import _end

SECONDS = 60

LEAVES_A_PROCESS = """
import os, time
left = os.fork()
if left == 0:
    os.setsid()
    time.sleep(600)
    os._exit(0)
print(left, flush=True)
"""


def test_a_process_that_a_half_left_behind_does_not_keep_the_job() -> None:
    """It has the standard error of the half; the owner of a database can do that to the engine half."""

    async def end() -> tuple[int, int | None, set[str]]:
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        before = set(os.listdir("/proc/self/fd"))
        half = await asyncio.create_subprocess_exec(sys.executable, "-c", LEAVES_A_PROCESS, **pipes)
        assert half.stdout is not None
        left = int(await half.stdout.readline())
        try:
            async with asyncio.timeout(SECONDS):
                await _end(half)
            await asyncio.sleep(0)  # the loop closes the pipes at its next turn
        finally:
            os.kill(left, signal.SIGKILL)
        return left, half.returncode, set(os.listdir("/proc/self/fd")) - before

    _, status, kept = asyncio.run(end())
    assert (status, kept) == (0, set())
