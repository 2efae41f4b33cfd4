"""structlog without rich, which would cost an idle daemon 4 MiB.

structlog loads rich whenever it is installed, to draw tracebacks that a daemon never draws.
"""

from __future__ import annotations

from dbguardd.lean import without

with without("rich"):
    import structlog

__all__ = ["structlog"]
