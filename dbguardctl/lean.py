"""http.client without ssl, which would cost every command 5 ms: a Unix socket has no use for it."""

from __future__ import annotations

from dbguardd.lean import without

with without("ssl"):
    import http.client

__all__ = ["http"]
