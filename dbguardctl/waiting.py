"""Whether the service manager is about to start dbguardd: whoever asks meanwhile waits and is not turned away.

The socket unit comes and goes with the service (`systemctl stop` means stopped), so that it is away for a moment in a
restart. This is asked only when the socket of the service does not answer.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

UNIT = "dbguardd.service"
_SECONDS = 120.0
_PAUSE_SECONDS = 0.1
_ASK_SECONDS = 5.0
_SYSTEMCTL = ("systemctl", "show", "--property=LoadState,ActiveState,Job", UNIT)


def wait_for_start(answers: Callable[[], bool], tell: Callable[[str], None]) -> bool:
    """Wait while a start, a stop or a restart of the service is under way; return whether it `answers` then.

    `tell` gets one line to say when the waiting begins. False at once where there is no service manager or where the
    service is simply stopped.
    """
    deadline = time.monotonic() + _SECONDS
    told = False
    while time.monotonic() < deadline:
        under_way = is_under_way()
        if answers():
            return True
        if not under_way:
            return False
        if not told:
            tell("dbguardd is being restarted: waiting for it")
            told = True
        time.sleep(_PAUSE_SECONDS)
    return False


def is_under_way() -> bool:
    """Say if systemd has a job for the unit, or is between two of its lives."""
    facts = _unit()
    return facts.get("Job", "") not in ("", "0") or facts.get("ActiveState") in ("activating", "deactivating")


def ways_to_start() -> list[str]:
    """Return the commands that help with a service that does not answer; none where systemd does not have it."""
    facts = _unit()
    if facts.get("LoadState") != "loaded":
        return []
    if facts.get("ActiveState") == "failed":  # too many starts that failed: systemd refuses the next, however right
        return ["systemctl status dbguardd", "systemctl reset-failed dbguardd; systemctl start dbguardd"]
    return ["systemctl start dbguardd", "systemctl status dbguardd"]


def _unit() -> dict[str, str]:
    """Return what systemd knows of the unit; nothing where there is no service manager."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return {}
    try:
        said = subprocess.run(_SYSTEMCTL, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.partition("=")[::2] for line in said.splitlines())
