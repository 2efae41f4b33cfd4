"""structlog without rich, which would cost an idle daemon 4 MiB.

structlog loads rich whenever it is installed, to draw tracebacks that a daemon never draws.
"""

from __future__ import annotations

import sys

_absent = object()
_rich = sys.modules.get("rich", _absent)
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _rich is _absent:
        del sys.modules["rich"]
    else:
        sys.modules["rich"] = _rich  # type: ignore[assignment]

__all__ = ["structlog"]
