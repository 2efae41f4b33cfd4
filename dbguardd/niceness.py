"""Giving way to applications also where the kernel divides a processor among sessions: sched(7), autogroup.

There the niceness of a process counts within its session only, and each session has a niceness of its own. Processes of
a service are in a control group instead, which has a weight: CPUWeight=.
"""

from __future__ import annotations

from pathlib import Path

TRIES, WAIT_SECONDS = 20, 0.05
"""How often to ask again, and after how long. Somebody who asks all the time can keep us from it, and not from work."""


def lower_session(pid: int, niceness: int) -> bool:
    """Give the session of a process a niceness, where that is allowed and has a meaning.

    False if the kernel refuses for now: it lets users other than root do this ten times a second, all of them together.
    """
    try:
        if niceness > 0:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
