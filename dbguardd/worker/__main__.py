"""One half of a worker: `python -I -m dbguardd.worker repository|engine|question PARENT_PID SEAM_FD`.

Loading code is most of the cost of a short job, and none of it is garbage: collection starts when all is loaded.
"""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.disable()
    from dbguardd.worker.half import main

    sys.exit(main(*sys.argv[1:]))
