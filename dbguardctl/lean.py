"""http.client without ssl, which would cost every command 5 ms: a Unix socket has no use for it."""

from __future__ import annotations

import sys

_absent = object()
_ssl = sys.modules.get("ssl", _absent)
sys.modules["ssl"] = None  # type: ignore[assignment]
try:
    import http.client
finally:
    if _ssl is _absent:
        del sys.modules["ssl"]
    else:
        sys.modules["ssl"] = _ssl  # type: ignore[assignment]

__all__ = ["http"]
