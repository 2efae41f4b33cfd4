"""Imports aiohttp without TLS: its client would read all certificates of the system at each start of the daemon."""

from __future__ import annotations

from dbguardd.lean import without

with without("ssl"):
    from aiohttp import web

__all__ = ["web"]
