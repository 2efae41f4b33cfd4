"""Imports http.client without ssl, which would cost every command 5 ms and is useless on a Unix socket."""

from __future__ import annotations

from dbguardd.lean import without

with without("ssl"):
    import http.client

__all__ = ["http"]
