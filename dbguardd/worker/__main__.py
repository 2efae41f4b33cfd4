"""One half of a worker: `python -I -m dbguardd.worker repository|engine|question PARENT_PID SEAM_FD`.

Loading code is most of what a short job costs. None of it is garbage, so nothing is searched for any until it is there.
"""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.disable()
    from dbguardd.worker.half import main

    sys.exit(main(*sys.argv[1:]))
