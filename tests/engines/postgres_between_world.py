"""A proxy in front of PostgreSQL servers: it alters their answers, or chooses a server for each connection."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import contextmanager, suppress


class Between:
    """A port that connects to `servers` (ports) in turn; what they send is passed through `alter`."""

    def __init__(self, servers, alter):
        self._servers, self._alter = servers, alter
        self._over, self._lines = threading.Event(), []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.came = 0
        self._serving = threading.Thread(target=self._serve)

    def _serve(self):
        while not self._over.is_set():
            if select.select([self._listening], [], [], 0.05)[0]:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._servers[self.came % len(self._servers)]))
                self.came += 1
                ways = ((client, server, None), (server, client, self._alter(self.came) if self._alter else None))
                for way in ways:
                    self._lines.append(threading.Thread(target=self._pass, args=way))
                    self._lines[-1].start()

    def _pass(self, one, other, alter):
        with one, suppress(OSError, ValueError):
            while not self._over.is_set():
                if select.select([one], [], [], 0.05)[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        break
                    other.sendall(alter(data) if alter else data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def start(self):
        self._serving.start()

    def end(self):
        self._over.set()
        for line in (self._serving, *self._lines):
            line.join()
        self._listening.close()


@contextmanager
def between(*servers, alter=None):
    """Run the proxy for the length of a block. `alter(number)` returns what alters a connection's answers."""
    made = Between(servers, alter)
    made.start()
    try:
        yield made
    finally:
        made.end()
