"""A restore over the live database as the repository half sees it: each call goes over the seam."""

from __future__ import annotations

from pathlib import Path

from dbguardd.engines.base import LiveDisk, LiveState, Progress
from dbguardd.flow import Facts, Sink, Tree
from dbguardd.worker.remote import RemoteEngine, no_progress


class RemoteDeltaRestore:
    """The DeltaRestore protocol over the channel of an engine."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    def inspect(self, live: Path, facts: Facts) -> LiveState:
        found = self._engine.call("delta_restore.inspect", {"live": str(live), "facts": dict(facts)}, no_progress)
        disks = tuple(
            LiveDisk(str(one["path"]), int(one["bytes"]), int(one["free_bytes"]), tuple(map(str, one["parts"])))
            for one in found["disks"]
        )
        return LiveState(disks, int(found["spare_bytes"]), bool(found["begun"]))

    def check_unused(self, live: Path, facts: Facts) -> None:
        self._engine.call("delta_restore.check_unused", {"live": str(live), "facts": dict(facts)}, no_progress)

    def save(self, live: Path, facts: Facts, sink: Sink, progress: Progress) -> Facts:
        args = {"live": str(live), "facts": dict(facts)}
        made: Facts = self._engine.call("delta_restore.save", args, progress, sink=sink)
        return made

    def overwrite(self, tree: Tree, live: Path, progress: Progress) -> Path:
        return Path(self._engine.call("delta_restore.overwrite", {"live": str(live)}, progress, tree=tree))

    def publish(self, live: Path) -> str:
        return str(self._engine.call("delta_restore.publish", {"live": str(live)}, no_progress))
