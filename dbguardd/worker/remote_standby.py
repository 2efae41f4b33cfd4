"""A standby as the repository half sees it: each call goes over the seam."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dbguardd.engines.base import Finding, Progress, ProofQuery
from dbguardd.errors import WorkerDied
from dbguardd.flow import Facts, Tree
from dbguardd.serialize import to_json
from dbguardd.worker.remote import RemoteEngine


class RemoteStandby:
    """The Standby protocol over the channel of an engine."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    def found(self, target: Path, progress: Progress) -> Facts | None:
        mark = self._engine.call("standby.found", {"target": str(target)}, progress)
        if mark is not None and not isinstance(mark, dict):
            raise WorkerDied("the engine half named a mark that is none")
        return mark

    def make(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> list[str]:
        args = {"target": str(target), "mark": mark}
        return [str(lost) for lost in self._engine.call("standby.make", args, progress, tree=tree)]

    def advance(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        self._engine.call("standby.advance", {"target": str(target), "mark": mark}, progress, tree=tree)

    def rebase(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        self._engine.call("standby.rebase", {"target": str(target), "mark": mark}, progress, tree=tree)

    def promote(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> list[Finding]:
        args = {"target": str(target), "queries": to_json(queries)}
        return [Finding(**found) for found in self._engine.call("standby.promote", args, progress)]
