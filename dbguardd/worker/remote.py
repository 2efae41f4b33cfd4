"""The engine as the repository half sees it: sends calls over the seam, and serves the engine's requests."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from operator import lt
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Examination, Finding, Probe, Progress, ProofQuery
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint, TablePrint
from dbguardd.errors import WorkerDied, from_problem
from dbguardd.flow import NUMBER_BYTES, TURNS, Facts, Images, LogSink, Segment, Sink, Tree
from dbguardd.serialize import to_json
from dbguardd.worker.channel import ASKS, DATA_BYTES, NAMES, Channel, Object, problem_of
from dbguardd.worker.streams import SourceAborted, take_streams

_SEGMENT_BYTES = 64 << 20
_PAGE_BYTES = tuple(1 << bits for bits in range(9, 17))
_MOST_PAGES = (1 << 32) - 1
_TEXT, _PLACE_BYTES = 300, 4000
_HOLDERS = 20
_SUM = re.compile("([0-9a-f]{16})?")


def check_writable(engine: RemoteEngine, target: Path) -> None:
    """Raise what a restore to `target` would raise if that cannot be created."""
    engine.call("check_writable", {"target": str(target)}, no_progress)


class RemoteEngine:
    """The Snapshots and LogSource protocols over a Channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._within = False  # a call has not returned yet

    def probe(self) -> Probe:
        found = self.call("probe", {}, no_progress)
        findings = tuple(Finding(**finding) for finding in found["findings"])
        return Probe(found["version"], found["size_bytes"], found["facts"], tuple(found["warnings"]), findings)

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        facts: Facts = self.call("dump", {"compared": compared}, progress, sink=sink)
        return facts

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        found = self.call("fingerprint", {}, progress, tree=stored)
        return NoFingerprint(str(found["why"])) if "why" in found else fingerprint_from(found)

    def release(self) -> None:
        """Release the snapshot. In the middle of an abandoned call, close the channel: the engine notices only that."""
        if self._within:
            self._channel.close()
        else:
            self.call("release", {}, no_progress)

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> list[str]:
        args = {"target": str(target), "places": dict(places or {})}
        return [str(lost) for lost in self.call("restore", args, progress, tree=tree)]

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        found = self.call("examine", {"target": str(target), "queries": to_json(queries)}, progress)
        print_ = found["fingerprint"]
        return Examination(
            [Finding(**finding) for finding in found["findings"]],
            None if print_ is None else fingerprint_from(print_),
            found["facts"],
        )

    def check_unused(self) -> None:
        self.call("check_unused", {}, no_progress)

    def replace(self, source: Path, progress: Progress) -> None:
        self.call("replace", {"source": str(source)}, progress)

    def follow(self, ship: LogSink, resume: Facts | None) -> None:
        self.call("follow", {"resume": resume}, no_progress, ship=ship)

    def unfollow(self, *, if_short: bool = False) -> None:
        self.call("unfollow", {"if_short": if_short}, no_progress)

    def find(self, tree: Tree, name: str, progress: Progress) -> tuple[int, datetime] | None:
        """Return the position in the log of a named restore point, and when it was created."""
        found = self.call("find", {"name": name}, progress, tree=tree)
        return None if found is None else (int(found[0]), datetime.fromisoformat(found[1]).astimezone(UTC))

    def call(
        self,
        name: str,
        args: Mapping[str, Any],
        progress: Progress,
        *,
        sink: Sink | None = None,
        tree: Tree | None = None,
        ship: LogSink | None = None,
    ) -> Any:
        """Make a call to the engine half, serve its requests during the call, and return the result."""
        self._within = True
        self._channel.send({"call": name, "args": args})
        while True:
            message, file = self._channel.receive()
            try:
                if not isinstance(message, dict):
                    raise WorkerDied("the engine half sent data out of turn")
                if "return" in message:
                    self._within = False
                    if "problem" in message:
                        raise from_problem(message["problem"])
                    return message["return"]
                if "ship" in message and ship is not None:
                    self._serve_ship(message, ship)
                else:
                    self._serve(message, file, progress, sink, tree)
            finally:
                if file is not None:
                    os.close(file)

    def _serve(
        self, message: Object, file: int | None, progress: Progress, sink: Sink | None, tree: Tree | None
    ) -> None:
        if "progress" in message:
            _tell(message, progress)
        elif "sink" in message and sink is not None:
            self._serve_sink(message, file, progress, sink)
        elif "tree" in message and tree is not None:
            self._serve_tree(message, file, progress, tree)
        else:
            raise WorkerDied("the engine half asked out of turn")

    def _serve_ship(self, message: Object, ship: LogSink) -> None:
        at = None if message["at"] is None else datetime.fromisoformat(message["at"]).astimezone(UTC)
        match message["ship"]:
            case "begin":
                because = str(message["because"])[:_TEXT]
                ship.begin(_place(message["place"]), continued=bool(message["continued"]), because=because)
            case "segment" if at is not None:
                segment = self._segment(message, at)
                self._answer(lambda: ship.ship(segment))
            case "audited":
                ship.audited(str(message["wrong"])[:_TEXT])
            case "held":
                ship.held(int(message["log_bytes"]), [str(who)[:_TEXT] for who in message["by"][:_HOLDERS]])
            case "reached":
                ship.reached(at)
            case _:
                raise WorkerDied("the engine half asked out of turn")

    def _segment(self, message: Object, at: datetime) -> Segment:
        """Receive a segment. Raises WorkerDied if it is invalid, before its body takes up memory."""
        stream, since, until = str(message["stream"]), _place(message["since"]), _place(message["until"])
        if len(stream) > _TEXT:
            raise _no_segment()
        body = self._images(message) if "count" in message else self._bytes(message, since, until)
        return Segment(stream, since, until, at, body)

    def _images(self, message: Object) -> Images:
        page_size, size, count = int(message["page_size"]), int(message["size"]), int(message["count"])
        whole = page_size in _PAGE_BYTES and size % page_size == 0 and 0 <= size <= _MOST_PAGES * page_size
        total = str(message.get("sum", ""))
        if not whole or count < 0 or not _SUM.fullmatch(total):
            raise _no_segment()
        images = Images(page_size, size, self._body(count * (NUMBER_BYTES + page_size)), total)
        numbers = images.numbers
        if not all(map(lt, (0, *numbers), numbers)):
            raise _no_segment()
        return images

    def _bytes(self, message: Object, since: Facts, until: Facts) -> bytearray:
        count, start = int(message["bytes"]), since["position"]
        turns, before = until.get(TURNS, []), since.get(TURNS, [])
        if len(turns) == len(before) + 1:  # the last turn says where the bytes begin
            start = turns[-1][1]
            turned = turns[:-1] == before and turns[-1][:3] == [since["round"], start, since["position"]]
            turned = turned and start <= since["position"]
        else:
            turned = turns == before and since["round"] == until["round"]
        if not turned or count < 1 or until["position"] - start != count:
            raise _no_segment()
        return self._body(count)

    def _body(self, wanted: int) -> bytearray:
        if wanted > _SEGMENT_BYTES:
            raise _no_segment()
        body = bytearray(wanted)
        self._channel.receive_into(memoryview(body))
        return body

    def _serve_sink(self, message: Object, file: int | None, progress: Progress, sink: Sink) -> None:
        name, stamp = str(message.get("name", "")), str(message.get("stamp", ""))
        match message["sink"]:
            case "admit":
                self._answer(lambda: sink.admit(message["facts"]))
            case "parent":
                self._answer(sink.parent)
            case "write":
                take_streams(self._channel, message, sink, lambda told: _tell(told, progress))
            case "adopt" if file is not None:
                self._adopt(message, file, progress, sink)
            case "reuse":
                self._answer(lambda: sink.reuse(name, stamp))
            case _:
                raise WorkerDied("the engine half asked out of turn")

    def _adopt(self, message: Object, file: int, progress: Progress, sink: Sink) -> None:
        """Let the sink read a file, perhaps while the engine half fills it. There is one answer, even to an abort."""
        on_demand = bool(message["on_demand"])
        filled = self._filled(progress, on_demand=on_demand) if message["growing"] else None

        def adopt() -> None:
            with suppress(SourceAborted):  # the call's own problem says why
                name, page_size, stamp = str(message["name"]), int(message["page_size"]), str(message["stamp"])
                how = {"changing": bool(message["changing"]), "on_demand": on_demand}
                changed = bytes.fromhex(message["changed"]) if "changed" in message else None
                sink.adopt(name, file, page_size, stamp=stamp, filled=filled, changed=changed, **how)

        self._answer(adopt)
        with suppress(SourceAborted):
            # If the sink failed, the engine half is told, and ends.
            for _ in filled if filled and not on_demand else ():
                pass

    def _filled(self, progress: Progress, *, on_demand: bool) -> Iterator[int]:
        while True:
            if on_demand:
                self._channel.send({"value": ASKS})
            message = self._channel.receive_object()
            match message.get("sink"):
                case "filled":
                    yield int(message["bytes"])
                case "end":
                    return
                case "abort":
                    raise SourceAborted
                case _:
                    _tell(message, progress)

    def _serve_tree(self, message: Object, file: int | None, progress: Progress, tree: Tree) -> None:
        name = str(message.get("name", ""))
        match message["tree"]:
            case "facts":
                self._answer(lambda: tree.facts)
            case "names":
                after = int(message["after"])
                self._answer(lambda: list(islice(tree.names(), after, after + NAMES)))
            case "deliver" if file is not None:
                self._answer(lambda: tree.deliver(name, file, delta=bool(message["delta"])))
            case "read":
                self._send_stream(name, progress, tree)
            case _:
                raise WorkerDied("the engine half asked out of turn")

    def _send_stream(self, name: str, progress: Progress, tree: Tree) -> None:
        def listen() -> None:
            while self._channel.said_something():
                _tell(self._channel.receive_object(), progress)

        try:
            with tree.read(name) as source:
                while data := source.read(DATA_BYTES):
                    self._channel.send_data(data, listen)
        except Exception as error:  # noqa: BLE001 the engine cleans up, then the call fails with the same error
            self._channel.send({"problem": problem_of(error)})
        else:
            self._channel.send({"value": None})

    def _answer(self, act: Any) -> None:
        """Answer with a value; an error goes to the engine, which cleans up and returns it as the call's own."""
        try:
            value = act()
        except Exception as error:  # noqa: BLE001
            self._channel.send({"problem": problem_of(error)})
        else:
            self._channel.send({"value": to_json(value)})


def _no_segment() -> WorkerDied:
    return WorkerDied("the engine half sent an invalid segment")


def _tell(message: Object, progress: Progress) -> None:
    """Pass on a progress message, the only kind that the engine half sends unasked."""
    if "progress" not in message:
        raise WorkerDied("the engine half asked out of turn")
    step, done_bytes, total_bytes = message["progress"]
    progress(str(step), int(done_bytes), None if total_bytes is None else int(total_bytes))


def _place(value: Any) -> Facts:
    """Return a place in a log, see flow.Segment. Raises WorkerDied if it is malformed."""
    told = isinstance(value, dict) and isinstance(value.get("round"), str) and isinstance(value.get("position"), int)
    told = told and isinstance(value.get(TURNS, []), list) and all(map(_is_turn, value.get(TURNS, [])))
    if not told or len(json.dumps(value)) > _PLACE_BYTES:
        raise WorkerDied("the engine half named an invalid position")
    place: Facts = value
    return place


def _is_turn(value: Any) -> bool:
    match value:
        case [str(), int(), int(), str() as at]:
            with suppress(ValueError):
                return datetime.fromisoformat(at).tzinfo is not None
    return False


def fingerprint_from(value: Mapping[str, Any]) -> Fingerprint:
    """Rebuild a fingerprint from its JSON form."""
    tables = {name: TablePrint(int(table["rows"]), str(table["digest"])) for name, table in value["tables"].items()}
    return Fingerprint(str(value["schema_digest"]), tables)


def no_progress(step: str, done_bytes: int, total_bytes: int | None) -> None:
    """Ignore progress, for short calls."""
