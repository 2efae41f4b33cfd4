"""Tells systemd the state of the daemon: ready, reloading, stopping, alive, and one line of status."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from sdnotify import SystemdNotifier


class Notify:
    """Writes to $NOTIFY_SOCKET; does nothing if that is not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._notifier = SystemdNotifier() if environment.get("NOTIFY_SOCKET") else None
        self._status = ""
        self.watchdog_seconds = _watchdog(environment)

    def ready(self, status: str) -> None:
        """Say that the start or a reload is complete."""
        self._send("READY=1", f"STATUS={_plain(status)}")

    def reloading(self) -> None:
        """Say that a reload begins; systemd matches it with the next ready() by the time."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """Say that the daemon stops, which may take so many seconds."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", "STATUS=Waiting for jobs to stop")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show a line in systemctl status; an unchanged line is not sent again."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_plain(text)}")

    def close(self) -> None:
        """Close the socket."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _send(self, *lines: str) -> None:
        if self._notifier is not None:
            self._notifier.notify("\n".join(lines))


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the watchdog interval that systemd expects, in seconds; None without a watchdog."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or not int(usec) or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def _plain(text: str) -> str:
    return text.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")  # all that sdnotify can encode
