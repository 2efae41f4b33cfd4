"""The other servers of a url: while one is followed, they are checked regularly for still being one cluster.

No stream shows that: a server that was left behind keeps accepting writes and sends them. The others are queried over
separate connections in a thread, so a server that does not answer delays no log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dbguardd.engines.postgresql.connect import Address
from dbguardd.engines.postgresql.roles import addresses_of, check_one, look_at
from dbguardd.errors import SourceReplaced

_BRIEF = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "10000",
}
"""For libpq: a server that does not answer in time is tried again next time. Settings in the url take precedence."""
_LOOKS = 2


class Others:
    """What was seen of the servers of a url since one of them is followed."""

    def __init__(self, address: Address, about: str) -> None:
        self._several, self._about = [{**_BRIEF, **one} for one in addresses_of(address)], about
        self.problem: SourceReplaced | None = None

    def __len__(self) -> int:
        return len(self._several) - 1

    def look(self) -> None:
        """Query all servers. A problem counts only if seen twice in a row: roles may change while servers are queried.

        A server that does not answer is no problem.
        """
        found: SourceReplaced | None = None
        for _ in range(_LOOKS):
            try:
                check_one(look_at(self._several)[0], self._about)
            except SourceReplaced as error:
                found = error
            else:
                return
        self.problem = found

    def check(self) -> None:
        """Raise SourceReplaced if servers were seen that are not one cluster, or two primaries of one."""
        if self.problem is not None:
            raise self.problem


@contextmanager
def watching(address: Address, about: str, seconds: float) -> Iterator[Others]:
    """Check the servers of a url every `seconds`, for the length of a block."""
    others, ended = Others(address, about), threading.Event()

    def watch() -> None:
        while not ended.wait(seconds):
            others.look()

    if others:
        threading.Thread(target=watch, name="others", daemon=True).start()
    try:
        yield others
    finally:
        ended.set()
