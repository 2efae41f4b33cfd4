"""The entry point. It imports nothing itself, so that Ctrl-C during the loading of the rest ends without a traceback.

Nothing that is loaded is garbage: only what a command creates later is collected.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run dbguardctl and return its exit status."""
    try:
        gc.disable()
        from dbguardctl.run import run  # noqa: PLC0415 - takes half of the time of a command

        gc.freeze()
        gc.enable()
        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
