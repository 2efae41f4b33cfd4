"""Questions about backups as the repository half sees them: asked over the seam, and given the pages they need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Answer, Bounds, Progress, ScratchRestore
from dbguardd.errors import Damaged, GuardError, KeyRefused, ObjectMissing, WorkerDied, from_problem
from dbguardd.flow import Facts, Pages, Tree
from dbguardd.serialize import to_json
from dbguardd.worker.channel import Channel, Object, problem_of
from dbguardd.worker.remote import RemoteEngine

Asked = Pages | ScratchRestore

_SLACK_BYTES = 1 << 20
_COUNTS = ("tables", "differing", "not_compared", "added", "removed", "changed", "listed")


class RemoteQuestions:
    """The Questions protocol over a Channel. The other half is trusted neither about damage nor about size.

    The facts of an answer are kept with the job, so only the expected form is accepted: they contain no row. The
    arguments are Pages if the other half is a question half, and what scratch_restore() returned if it is an engine
    half.
    """

    def __init__(self, channel: Channel, engine: RemoteEngine) -> None:
        self._channel, self._engine = channel, engine
        self._failed: GuardError | None = None
        self._names = set[str]()

    def scratch_restore(self, tree: Tree, place: Path, database: str, progress: Progress) -> ScratchRestore:
        self._engine.call("scratch_restore", {"place": str(place), "database": database}, progress, tree=tree)
        self._names |= {database, *(tree.facts.get("snapshots") or ())} - {""}
        return ScratchRestore(place, database)

    def query(self, asked: Asked, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        found = self._ask("query", {"sql": sql}, (asked,), bounds, answer)
        more = found.get("more")
        more = more if more in ("rows", "bytes") else None
        return {"rows": _count(found, "rows"), "more": more, **self._asked(found)}

    def table(self, asked: Asked, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        found = self._ask("table", {"name": name, "form": form}, (asked,), bounds, answer)
        return {"rows": _count(found, "rows"), "triggers": _count(found, "triggers"), **self._asked(found)}

    def difference(self, older: Asked, newer: Asked, table: str, bounds: Bounds, answer: Answer) -> Facts:
        found = self._ask("difference", {"table": table}, (older, newer), bounds, answer)
        return {**{name: _count(found, name) for name in _COUNTS}, **self._asked(found)}

    def missing(
        self, both: tuple[Asked, Asked], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        args = {"table": search[0], "where": search[1], "form": form}
        found = self._ask("missing", args, both, bounds, answer)
        names = ("rows", "listed", *(["differing"] if "differing" in found else []))
        return {**{name: _count(found, name) for name in names}, **self._asked(found)}

    def _asked(self, found: Object) -> Facts:
        """Return which database of a server was asked, if the backup has it."""
        name = found.get("in_database")
        return {"in_database": name} if isinstance(name, str) and name in self._names else {}

    def _ask(
        self, name: str, args: Mapping[str, Any], asked: Sequence[Asked], bounds: Bounds, answer: Answer
    ) -> Object:
        told = [
            [str(one.directory), one.database] if isinstance(one, ScratchRestore) else [one.size, one.page_size]
            for one in asked
        ]
        pages = [one for one in asked if not isinstance(one, ScratchRestore)]
        self._failed = None
        self._channel.send({"call": name, "args": {**args, "asked": told, "bounds": to_json(bounds)}})
        left = bounds.bytes + _SLACK_BYTES
        while True:
            message, file = self._channel.receive()
            if file is not None:
                os.close(file)
                raise WorkerDied("the question half sent a file")
            match message:
                case bytes():
                    left -= len(message)
                    if left < 0:
                        raise WorkerDied("the question half answered more than it was asked")
                    answer.write(message)
                case {"block": [int(which), int(number)]} if 0 <= which < len(pages):
                    self._give(pages[which], number)
                case {"progress": _}:
                    answer.beat()
                case {"return": found}:
                    return self._returned(found, message.get("problem"))
                case _:
                    raise WorkerDied("the question half asked out of turn")

    def _give(self, pages: Pages, number: int) -> None:
        try:
            data = pages.block(number)
        except GuardError as error:
            self._failed = error
            self._channel.send({"problem": problem_of(error)})
        else:
            self._channel.send_data(data)

    def _returned(self, found: Any, problem: Any) -> Object:
        """Return the answer. An error on our side is raised as it was; damage that it reports is not believed.

        Raises WorkerDied if it is not an answer.
        """
        if self._failed is not None:
            raise self._failed
        if isinstance(problem, dict):
            error = from_problem(problem)
            if not isinstance(error, Damaged | ObjectMissing | KeyRefused):
                raise error
        if problem is not None or not isinstance(found, dict):
            raise WorkerDied("the question half reported damage that does not exist, or sent an invalid message")
        return found


def _count(found: Object, name: str) -> int:
    value = found.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise WorkerDied("the question half sent an invalid message")
    return value
