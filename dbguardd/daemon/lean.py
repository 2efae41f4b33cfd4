"""Imports structlog without rich, which would cost an idle daemon 4 MiB.

If rich is installed, structlog loads it to draw tracebacks, which the daemon never does.
"""

from __future__ import annotations

from dbguardd.lean import without

with without("rich"):
    import structlog

__all__ = ["structlog"]
