"""Finds out whether the service manager is starting dbguardd: then the client waits instead of failing.

The socket unit starts and stops with the service (`systemctl stop` means stopped), so it is absent for a moment during
a restart. This is asked only if the socket of the service does not answer.
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
    """Wait while a start, stop or restart of the service is under way; return whether it `answers` then.

    `tell` receives one line when the waiting begins. Returns False at once if there is no service manager, or if the
    service is stopped.
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
    """Return whether systemd has a job for the unit, or is between two of its states."""
    facts = _unit()
    return facts.get("Job", "") not in ("", "0") or facts.get("ActiveState") in ("activating", "deactivating")


def ways_to_start() -> list[str]:
    """Return commands that help if the service does not answer; none if systemd does not know it."""
    facts = _unit()
    if facts.get("LoadState") != "loaded":
        return []
    if facts.get("ActiveState") == "failed":  # after too many failed starts, systemd refuses even a correct one
        return ["systemctl status dbguardd", "systemctl reset-failed dbguardd; systemctl start dbguardd"]
    return ["systemctl start dbguardd", "systemctl status dbguardd"]


def _unit() -> dict[str, str]:
    """Return systemd's properties of the unit; empty without a service manager."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return {}
    try:
        said = subprocess.run(_SYSTEMCTL, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.partition("=")[::2] for line in said.splitlines())
