"""Restores backups of dbguard without dbguard: one file that needs only the storage and a key.

    python3 recover.py KEY STORAGE list
    python3 recover.py KEY STORAGE restore BACKUP TARGET [--until MOMENT]
    python3 recover.py [KEY] STORAGE scrub

STORAGE is the directory of the repository, or a copy of it. KEY is one of: --machine-key FILE (32 bytes), --identity
FILE (an age identity, as on the recovery sheet), --passphrase-file FILE (or `-`: the first line of standard input),
--root-key FILE (32 bytes, the root key itself). scrub compares every object with the hash in its name, which needs no
key; with a key, it also reports missing packs: a copy made while a backup ran can lack some. TARGET is a directory that
does not exist yet; each stream of the backup becomes a file in it, verified by its digest. Only you can read the
directory; the files get the mode of the database, and facts.dbguard.json records its owner. With --until
(2026-09-12T08:59:00Z), the log stored since the backup is applied up to that moment; the log of a PostgreSQL cluster is
written beside the cluster, and its server recovers with it.

Needs Python 3.11 or newer and the packages cryptography, zstandard and blake3; for --identity also pyrage:

    python3 -m venv ~/v; . ~/v/bin/activate; pip install blake3 cryptography pyrage zstandard

Without pyrage, age itself decrypts the wrapped key in keys/ (base64); the result is JSON, whose member "secret" is the
root key in hex.

This is a second implementation of the format in dbguard-repository(5), written from that page: it shares no code with
dbguard.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import struct
import sys
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

lacking = ""
try:
    import zstandard
    from blake3 import blake3
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
except ModuleNotFoundError as missing:  # neither --help nor scrub needs any of them
    packages = "blake3 cryptography pyrage zstandard"
    lacking = f"recover: {missing}. Try: python3 -m venv ~/v; . ~/v/bin/activate; pip install {packages}"

FORMAT = 1
PART = 65536
MOST = 1 << 20
HOLE = 0xFFFFFFFF


class Unusable(Exception):
    """The storage violates the format; the text says where and how."""


class Key:
    """The root key, or the key of one database, and the keys derived from it."""

    def __init__(self, repo: bytes, identity: bytes, key: bytes, name: str = "") -> None:
        self.repo, self.id, self.key, self.name = repo, identity, key, name

    def derive(self, label: bytes) -> bytes:
        """Return 32 bytes for one use."""
        return HKDFExpand(SHA256(), 32, b"dbguard/v1/" + label + self.repo + self.id).derive(self.key)

    def cipher(self, label: bytes, header: bytes, where: str) -> AESGCM:
        """Return the cipher of an object from its header of 104 bytes."""
        if header[8:40] != self.repo + self.id:
            raise Unusable(f"{where}: belongs to another repository or database")
        both = HKDFExpand(SHA256(), 64, label + header[40:72]).derive(self.derive(label))
        if not hmac.compare_digest(both[32:], header[72:104]):
            raise Unusable(f"{where}: sealed with another key")
        return AESGCM(both[:32])


# ---------------------------------------------------------------------------------------------- objects


def named(storage: Path, name: str) -> bytes:
    """Return an object that is named after its hash."""
    data = (storage / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != name.rpartition("/")[2].rpartition("-")[2]:
        raise Unusable(f"{name}: damaged, its bytes do not match the hash in its name")
    return data


def listed(storage: Path, folder: str) -> list[str]:
    """Return the names of the objects in a folder, in order."""
    place = storage / folder
    files = place.iterdir() if place.is_dir() else ()
    return sorted(f"{folder}/{file.name}" for file in files if not file.name.startswith("."))


def opened(key: Key, data: bytes, kind: str, slot: str, name: str) -> dict[str, Any]:
    """Open a small sealed object: a record."""
    value: dict[str, Any] = json.loads(unsealed(key, data, kind, slot, name))
    return value


def unsealed(key: Key, data: bytes, kind: str, slot: str, name: str) -> bytes:
    """Open a sealed object."""
    header, body = data[:104], data[104:]
    if header[:8] != b"DBGOBJ01":
        raise Unusable(f"{name}: not a sealed object")
    place = header + kind.encode() + b"\0" + slot.encode()
    try:
        return key.cipher(b"object", header, name).decrypt(bytes(12), body, place)
    except InvalidTag as error:
        raise Unusable(f"{name}: does not open: altered or moved") from error


class Repository:
    """An open repository in a directory."""

    def __init__(self, storage: Path, root: bytes) -> None:
        self.storage = storage
        body = described(storage)
        mac = body.pop("mac")
        repo = bytes.fromhex(body["repo_id"])
        self.root = Key(repo, bytes(16), root)
        if hmac.digest(self.root.derive(b"description"), canonical(body), "sha256").hex() != mac:
            raise Unusable("repo.json: it was modified, or this is the key of another repository")
        self.keys: dict[bytes, Key] = {}
        for name in listed(storage, "domains"):
            domain = opened(self.root, named(storage, name), "domain", "", name)
            key = Key(repo, bytes.fromhex(domain["id"]), bytes.fromhex(domain["key"]), domain["name"])
            self.keys[key.id] = key

    def backups(self) -> Iterator[tuple[Key, dict[str, Any], bool]]:
        """Yield the key, the manifest, and whether it has expired, of every backup, oldest first."""
        tombs = {name.rpartition("/")[2].rpartition("-")[0] for name in listed(self.storage, "records/tomb")}
        for name in listed(self.storage, "records/backup"):
            slot = name.rpartition("/")[2].rpartition("-")[0]
            try:
                data = named(self.storage, name)
                key = self.keys.get(data[24:40])
                if key is None:
                    raise Unusable(f"{name}: the key of its database is missing")
                yield key, opened(key, data, "backup", slot, name), slot in tombs
            except Unusable as error:
                print(error, file=sys.stderr)


def described(storage: Path) -> dict[str, Any]:
    """Return repo.json."""
    if not (storage / "repo.json").is_file():
        raise Unusable(f"{storage}: not the directory of a repository: it contains no repo.json")
    body: dict[str, Any] = json.loads((storage / "repo.json").read_bytes())
    if body["min_reader"] > FORMAT or body["features"]["required"]:
        raise Unusable(
            f"repo.json: this program reads format {FORMAT}; the repository needs {body['min_reader']} "
            f"and the features {body['features']['required']}"
        )
    return body


def canonical(value: dict[str, Any]) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ---------------------------------------------------------------------------------------------- packs


class Packs:
    """Reads frames of one database."""

    def __init__(self, storage: Path, key: Key) -> None:
        self.storage, self.key = storage, key
        self.part, self.whole, self.line = (key.derive(label) for label in (b"part", b"frame", b"stream"))
        self.known: dict[str, tuple[AESGCM, bytes, list[tuple[bytes, int, int, int, int, int]]]] = {}
        self.last: tuple[tuple[str, int], bytes] = (("", 0), b"")

    def parts(self, data: bytes) -> bytes:
        """Return the digests of the parts of some plaintext."""
        return b"".join(blake3(data[at : at + PART], key=self.part).digest(16) for at in range(0, len(data), PART))

    def digest(self, data: bytes) -> bytes:
        """Return the digest of a frame."""
        return blake3(self.parts(data) + struct.pack(">Q", len(data)), key=self.whole).digest()

    def frame(self, pack: str, number: int, kind: int) -> bytes:
        """Return the plaintext of a frame, checked."""
        if self.last[0] == (pack, number):
            return self.last[1]
        where = place_of(pack)
        cipher, header, table = self.known.get(pack) or self._open(pack, where)
        if number >= len(table) or table[number][1] != kind:
            raise Unusable(f"{where}: frame {number} is missing, or of another kind")
        digest, _, packed, start, stored, length = table[number]
        with (self.storage / where).open("rb") as file:
            file.seek(start)
            sealed = file.read(stored)
        place = header + struct.pack(">QBBI", number, kind, packed, length) + digest
        try:
            data = cipher.decrypt(struct.pack(">IQ", 0, number), sealed, place)
            if packed and zstandard.frame_content_size(data) == length:
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
        except (InvalidTag, zstandard.ZstdError) as error:
            raise Unusable(f"{where}: frame {number} is damaged") from error
        if len(data) != length or self.digest(data) != digest:
            raise Unusable(f"{where}: frame {number} does not match its digest")
        self.last = ((pack, number), data)
        return data

    def _open(self, pack: str, where: str) -> tuple[AESGCM, bytes, list[tuple[bytes, int, int, int, int, int]]]:
        with (self.storage / where).open("rb") as file:
            header = file.read(104)
            size = file.seek(0, os.SEEK_END)
            file.seek(size - 12)
            length, end = struct.unpack(">I8s", file.read(12))
            file.seek(max(104, size - 12 - length))
            trailer = file.read(length)
        if header[:8] != b"DBGPACK1" or end != b"DBGEND01":
            raise Unusable(f"{where}: not a pack")
        cipher, table, at = self.key.cipher(b"pack", header, where), [], 104
        try:
            plain = cipher.decrypt(struct.pack(">IQ", 1, 0), trailer, header + b"trailer")
        except InvalidTag as error:
            raise Unusable(f"{where}: its trailer is damaged") from error
        for digest, kind, packed, stored, raw in struct.iter_unpack(">32sBBII", plain):
            if raw > MOST:
                raise Unusable(f"{where}: a frame of {raw} bytes, at most {MOST}")
            table.append((digest, kind, packed, at, stored, raw))
            at += stored
        if at != size - 12 - length:
            raise Unusable(f"{where}: its frames do not exactly fill it")
        self.known[pack] = cipher, header, table
        return self.known[pack]

    def root(self, pack: str, number: int) -> bytes:
        """Return the root of a stream, which may span several frames."""
        data = self.frame(pack, number, 4)
        total = struct.unpack_from("<I", data)[0]
        while len(data) < total:
            number += 1
            data += self.frame(pack, number, 4)
        return data


# ---------------------------------------------------------------------------------------------- streams


def place_of(pack: str) -> str:
    """Return the path of a pack in the storage."""
    return f"packs/{pack[:2]}/{pack}"


def needed(packs: Packs, body: dict[str, Any]) -> set[str]:
    """Return the names of all packs that a backup needs, from the roots of its streams."""
    found = set()
    for stream in body["streams"]:
        home = stream["root"]["pack"]
        raw = packs.root(home, stream["root"]["frame"])
        if raw[4:8] == b"PMAP":
            (count,) = struct.unpack_from("<I", raw, 68)
            at = 80 + 12 * count
        else:
            (count,) = struct.unpack_from("<I", raw, 48)
            at = 56
        found |= {home, *(own(raw[at + 32 * i : at + 32 * i + 32], home) for i in range(count))}
    return found


def flow(packs: Packs, raw: bytes, home: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the chunks of a flow stream, each with its digest, which the digest of the stream covers."""
    _, _, _, _, count, chunks = struct.unpack_from("<I4sQ32sII", raw)
    at = 56
    names = [own(raw[at + 32 * i : at + 32 * i + 32], home) for i in range(count)]
    at += 32 * count
    digests = [raw[at + 32 * i : at + 32 * i + 32] for i in range(chunks)]
    at += 32 * chunks
    lengths = struct.unpack_from(f"<{chunks}I", raw, at)
    numbers = struct.unpack_from(f"<{chunks}I", raw, at + 4 * chunks)
    frames = struct.unpack_from(f"<{chunks}H", raw, at + 8 * chunks)
    for digest, length, number, frame in zip(digests, lengths, numbers, frames, strict=True):
        data = packs.frame(names[number], frame, 2)
        if len(data) != length or packs.digest(data) != digest:
            raise Unusable("a chunk differs from what was backed up")
        yield data, digest


def paged(packs: Packs, raw: bytes, home: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the extents of a paged stream, each with its digest, which the digest of the stream covers."""
    _, _, size, _, unit, _, _, _, count, leaves, extents = struct.unpack_from("<I4sQIIQ32sIIII", raw)
    at = 80
    numbers = struct.unpack_from(f"<{count}I", raw, at)
    at += 12 * count
    names = {number: own(raw[at + 32 * i : at + 32 * i + 32], home) for i, number in enumerate(numbers)}
    at += 32 * count
    leaf_packs = struct.unpack_from(f"<{leaves}I", raw, at)
    leaf_frames = struct.unpack_from(f"<{leaves}H", raw, at + 4 * leaves)
    leaf_of = struct.unpack_from(f"<{extents}I", raw, at + 6 * leaves)
    opened_leaf, table = -1, dict[int, tuple[bytes, list[tuple[int, int, int]]]]()
    for extent, leaf in enumerate(leaf_of):
        if leaf != opened_leaf:
            table = leaf_table(packs.frame(names[leaf_packs[leaf]], leaf_frames[leaf], 3))
            opened_leaf = leaf
        if extent not in table:
            raise Unusable(f"the page map has no leaf for extent {extent}")
        digest, places = table[extent]
        length, pieces = min(PART, size - extent * PART), []
        for place in range(-(-length // unit)):
            pack, frame, slot = places[place]
            want = min(unit, length - place * unit)
            data = bytes(want) if pack == HOLE else packs.frame(names[pack], frame, 1)[slot * unit : slot * unit + want]
            pieces.append(data)
        whole = b"".join(pieces)
        if len(whole) != length or packs.parts(whole) != digest:
            raise Unusable(f"extent {extent} differs from what was backed up")
        yield whole, digest


def leaf_table(raw: bytes) -> dict[int, tuple[bytes, list[tuple[int, int, int]]]]:
    """Return the leaves of one frame: extent -> digest, and pack, frame and slot of each unit."""
    count, units = struct.unpack_from("<II", raw)
    extents = struct.unpack_from(f"<{count}I", raw, 8)
    digests = 8 + 4 * count
    at, total = digests + (16 + 8 * units) * count, count * units
    packs = struct.unpack_from(f"<{total}I", raw, at)
    frames = struct.unpack_from(f"<{total}H", raw, at + 4 * total)
    slots = struct.unpack_from(f"<{total}H", raw, at + 6 * total)
    places = list(zip(packs, frames, slots, strict=True))
    return {
        extent: (raw[digests + 16 * i : digests + 16 * i + 16], places[units * i : units * i + units])
        for i, extent in enumerate(extents)
    }


def own(name: bytes, home: str) -> str:
    """Return the name of a pack; zeros mean the pack that contains the root itself."""
    return name.hex() if any(name) else home


def private(name: str, flags: int) -> int:
    """Open a file that only its owner may read."""
    return os.open(name, flags, 0o600)


def restore(packs: Packs, stream: dict[str, Any], target: Path) -> None:
    """Write one stream to a new file, and verify its size and digest."""
    home, number = stream["root"]["pack"], stream["root"]["frame"]
    raw = packs.root(home, number)
    pieces = (paged if raw[4:8] == b"PMAP" else flow)(packs, raw, home)
    line, size = blake3(struct.pack(">Q", stream["size"]), key=packs.line), 0
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(target, "xb", opener=private) as file:  # noqa: PTH123 - Path.open takes no opener
        for data, digest in pieces:
            line.update(digest)
            size += len(data)
            if data.count(0) == len(data):  # a hole stays a hole
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    if size != stream["size"] or line.digest().hex() != stream["digest"]:
        raise Unusable(f"{stream['name']}: the whole stream differs from what was backed up")


# ---------------------------------------------------------------------------------------------- the log


def segments(storage: Path, key: Key, chain: str, first: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield head and body of the segments of a log from number `first` on, up to the first one that is missing."""
    row = []
    for name in listed(storage, f"log/{key.id.hex()}"):
        slot = name.rpartition("/")[2].rpartition("-")[0]
        whose, low, high, *_ = slot.split("-")
        if whose == chain:
            row.append((int(low), -int(high), name, slot))
    place = None
    for begin, end, name, slot in sorted(row):
        if begin > first:
            return
        if -end < first:
            continue
        plain, at = unsealed(key, named(storage, name), "log", slot, name), 0
        while at < len(plain):
            parts = []
            for _ in range(2):
                (length,) = struct.unpack_from(">I", plain, at)
                parts.append(plain[at + 4 : at + 4 + length])
                at += 4 + length
            head = json.loads(parts[0])
            begins = head["number"] - head.get("merged", 0)  # several segments may be merged into one
            if begins <= first <= head["number"]:
                if begins == first and place not in (None, head["since"]):
                    raise Unusable(f"{name}: segment {first} does not follow {first - 1}")
                first, place = head["number"] + 1, head["until"]
                yield head, parts[1]


def replay(storage: Path, key: Key, backup: dict[str, Any], until: datetime, target: Path) -> str:
    """Apply the log to the restored streams in `target`, up to a moment; return the moment that was reached."""
    log, place, made_at = backup["facts"].get("log"), backup["facts"].get("log_place"), str(backup["created_at"])
    if not log or not place:
        raise Unusable("no log goes on from this backup; take another one, or leave --until away")
    reached, past, waiting = "", False, list[tuple[dict[str, Any], bytes]]()
    last: dict[str, Any] = {}
    for head, body in segments(storage, key, log["chain"], log["after"]):
        if datetime.fromisoformat(head["at"]) > until:
            break
        end = head["until"]
        past = past or (end["round"] == place["round"] and end["position"] >= place["position"])
        past = past or (not place["position"] and head["at"] >= made_at)  # an empty WAL starts another round later
        waiting += [(head, body)] if head["number"] > log["after"] else []
        if past and head["size"]:  # a transaction ends here, and the log read so far covers the backup
            for one in waiting:
                overlay(target, *one)
            reached, waiting, last = head["at"], [], head
    if not reached:
        raise Unusable("the log has nothing between this backup and that moment; omit --until")
    if last.get("sum") and summed(safe(target, last["stream"]), last["page_size"]) != last["sum"]:
        raise Unusable(f"segment {last['number']}: the backup with the log applied differs from what the database was")
    return reached


def keep_log(storage: Path, key: Key, backup: dict[str, Any], until: datetime, target: Path) -> str:
    """Write a log of bytes into WAL files as a PostgreSQL server names them; return the moment it reaches at least.

    The server's restore_command finds them in `log` below the target. They contain everything that had committed by the
    moment, and more, so the server needs the moment as its recovery_target_time. The part of a file before the log
    begins comes from the backup.
    """
    facts = backup["facts"]
    if not facts.get("log"):
        raise Unusable("no log goes on from this backup; take another one, or leave --until away")
    reached, round = "", ""
    (target / "log").mkdir(mode=0o700)
    for head, body in segments(storage, key, facts["log"]["chain"], facts["log"]["after"] + 1):
        data, at = memoryview(zstandard.ZstdDecompressor().decompress(body)), head["since"]["position"]
        turns = head["until"].get("turns", [])
        if len(turns) > len(head["since"].get("turns", [])):  # another server took over
            left_round, at, _stored, left_at = turns[-1]
            if datetime.fromisoformat(left_at) > until:
                break  # until then the previous server wrote
            if (
                round
                and left_round == round
                and (round != facts["log_place"]["round"] or facts["log_place"]["position"] <= at)
            ):
                round = turned(target, facts, round, head["until"]["round"], at)
        round = round or (head["until"]["round"] if head["until"]["round"] == facts["log_place"]["round"] else "")
        if not round:
            continue  # from before the backup, which another server made
        if head["until"]["round"] != round or len(data) != head["size"]:
            raise Unusable(f"segment {head['number']}: does not belong to the log that continues the backup")
        lay(target, facts, timeline_of(round), at, data)
        reached = head["at"]
        if datetime.fromisoformat(reached) > until:
            break
    if not reached:
        raise Unusable("the log has nothing after this backup; omit --until")
    return str(reached)


def lay(target: Path, facts: dict[str, Any], timeline: int, at: int, data: memoryview) -> None:
    """Write bytes of the log into its files, from a place on, except for files older than the backup needs."""
    size = facts["segment_bytes"]
    high, low = facts["start_lsn"].split("/")
    oldest = ((int(high, 16) << 32) + int(low, 16)) // size
    while data:
        start = at % size
        part, data = data[: size - start], data[size - start :]
        path = target / "log" / log_name(facts, timeline, at)
        if at // size >= oldest:
            if not path.exists():
                path.write_bytes(member(target / "log.tar", f"pg_wal/{path.name}") or bytes(size))
            with path.open("r+b") as file:
                file.seek(start)
                file.write(part)
        at += len(part)


def turned(target: Path, facts: dict[str, Any], before: str, after: str, at: int) -> str:
    """Continue on another server's timeline, whose first file begins as the old timeline's does; return its round."""
    size, old, new = facts["segment_bytes"], timeline_of(before), timeline_of(after)
    path = target / "log" / log_name(facts, old, at)
    whole = path.read_bytes() if path.exists() else member(target / "log.tar", f"pg_wal/{path.name}")
    path.with_name(log_name(facts, new, at)).write_bytes(whole[: at % size] + bytes(size - at % size))
    history = target / "log" / f"{old:08X}.history"
    told = history.read_bytes() if history.exists() else member(target / "log.tar", f"pg_wal/{history.name}")
    line = f"{old}\t{at >> 32:X}/{at & 0xFFFFFFFF:X}\tanother server took over\n"
    history.with_name(f"{new:08X}.history").write_bytes(told + line.encode())
    return after


def log_name(facts: dict[str, Any], timeline: int, at: int) -> str:
    """Return the name of the server's WAL file that contains a place of its log."""
    number, each = at // facts["segment_bytes"], (1 << 32) // facts["segment_bytes"]
    return f"{timeline:08X}{number // each:08X}{number % each:08X}"


def timeline_of(round: str) -> int:
    """Return the timeline of a round, "cluster/timeline"."""
    return int(round.split("/")[1])


def member(archive: Path, name: str) -> bytes:
    """Return a file in a tar archive that has only short names; nothing if it is not there."""
    with archive.open("rb") as file:
        while (header := file.read(512)).strip(b"\0"):
            size = int(header[124:136].strip(b"\0 "), 8)
            if header[:100].rstrip(b"\0") == name.encode():
                return file.read(size)
            file.seek(size + -size % 512, os.SEEK_CUR)
    return b""


def summed(file: Path, page_size: int) -> str:
    """Return the sum of a file: the hashes of its pages, each of the page's number and bytes, added up."""
    total, number = 0, 0
    with file.open("rb") as opened:
        while page := opened.read(page_size):
            number += 1
            total += int.from_bytes(blake3(struct.pack(">I", number) + page).digest(8), "big")
    return f"{total % (1 << 64):016x}"


def overlay(target: Path, head: dict[str, Any], body: bytes) -> None:
    """Write the pages of a segment over a restored stream."""
    length = head["count"] * (4 + head["page_size"])
    data = zstandard.ZstdDecompressor().decompress(body, max_output_size=length)
    if len(data) != length:
        raise Unusable(f"segment {head['number']}: {len(data)} bytes instead of {length}")
    pages = 4 * head["count"]
    with safe(target, head["stream"]).open("r+b") as file:
        for place, (number,) in enumerate(struct.iter_unpack(">I", data[:pages])):
            start = pages + place * head["page_size"]
            file.seek((number - 1) * head["page_size"])
            file.write(data[start : start + head["page_size"]])
        if head["size"]:
            file.truncate(head["size"])
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------- keys


def root_key(storage: Path, options: argparse.Namespace) -> bytes:
    """Find the root key with whatever key was given."""
    if options.root_key:
        return Path(options.root_key).read_bytes()
    repo = bytes.fromhex(described(storage)["repo_id"])
    said = []
    for name in listed(storage, "keys"):
        label = name
        try:
            body = json.loads(named(storage, name))
            label, wrapped = body["label"], base64.b64decode(body["wrapped"])
            if body["kind"] == "machine" and options.machine_key:
                return unwrap(Path(options.machine_key).read_bytes(), wrapped, repo)
            if body["kind"] == "passphrase" and options.passphrase_file:
                return unwrap(stretched(options.passphrase_file, wrapped), wrapped, repo)
            if body["kind"] == "age" and options.identity:
                return unaged(options.identity, wrapped, repo)
        except (Unusable, LookupError, ValueError, TypeError, RecursionError) as error:  # another one may be intact
            said.append(f"{label}: {error}")
    raise Unusable("; ".join(said) or "this repository has no wrapped key of the kind that was given")


def unwrap(key: bytes, wrapped: bytes, repo: bytes) -> bytes:
    """Open a wrap of a machine key or a passphrase."""
    length = int.from_bytes(wrapped[8:10], "big")
    header, front = wrapped[10 : 10 + length], wrapped[: 74 + length]
    info = b"dbguard/v1/wrap" + wrapped[8:10] + header + repo
    both = HKDF(SHA256(), 64, front[10 + length : 42 + length], info).derive(key)
    if hashlib.sha256(wrapped[:-32]).digest() != wrapped[-32:]:
        raise Unusable("damaged")
    if both[32:] != front[42 + length :]:
        raise Unusable("wrapped with another key, or for another repository")
    return AESGCM(both[:32]).decrypt(bytes(12), wrapped[74 + length : -32], front)


def stretched(file: str, wrapped: bytes) -> bytes:
    """Make the key of a passphrase."""
    text = sys.stdin.readline() if file == "-" else Path(file).read_text()
    header = wrapped[10 : 10 + int.from_bytes(wrapped[8:10], "big")]
    memory, iterations, lanes = struct.unpack(">III", header[11:23])
    kdf = Argon2id(salt=header[23:], length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
    return kdf.derive(unicodedata.normalize("NFC", text.removesuffix("\n")).encode())


def unaged(file: str, wrapped: bytes, repo: bytes) -> bytes:
    """Open a wrap for an age recipient: an age file with one line of JSON."""
    try:
        import pyrage  # noqa: PLC0415  # only this kind of key needs it
    except ModuleNotFoundError as missing:
        raise Unusable(f"{missing}. Try: {sys.executable} -m pip install pyrage") from missing

    _, begin, rest = Path(file).read_text().upper().partition("AGE-SECRET-KEY-1")
    typed = "".join(rest.split())[:58]  # spaces, line ends and the other text of the sheet do not matter
    try:
        identity = pyrage.x25519.Identity.from_str(begin + typed)
    except pyrage.IdentityError as error:
        what = f"{len(typed)} of 58 characters follow AGE-SECRET-KEY-1" if len(typed) < 58 else "its checksum is wrong"
        raise Unusable(f"{file}: not an age identity, or mistyped: {what}") from error
    try:
        plain = json.loads(pyrage.decrypt(wrapped, [identity]))
    except pyrage.DecryptError as error:
        raise Unusable(str(error)) from error
    if plain["context"] != repo.hex():
        raise Unusable("wrapped for another repository")
    return bytes.fromhex(plain["secret"])


# ---------------------------------------------------------------------------------------------- commands


def scrub(storage: Path, repository: Repository | None) -> int:
    """Compare every object with the hash in its name; with a key, also report backups that lack packs."""
    bad = seen = 0
    for file in sorted(storage.rglob("*")):
        digest = file.name.rpartition("-")[2]
        if file.is_file() and len(digest) == 64:
            seen += 1
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                bad += 1
                print(f"damaged: {file.relative_to(storage)}")
    cut = 0
    for key, body, expired in repository.backups() if repository else ():
        try:
            gone = [place_of(pack) for pack in needed(Packs(storage, key), body)]
            gone = [place for place in gone if not (storage / place).is_file()]
        except (OSError, Unusable, LookupError, struct.error) as error:
            gone = [str(error)]
        if gone and not expired:
            cut += 1
            print(f"incomplete: {body['id']} of {body['database']} lacks {min(gone)}: copied while a backup ran?")
    unseen = "" if repository else "; missing packs were not looked for: that needs a key"
    lack = f", backups that cannot be restored: {cut}" if cut else ""
    print(f"{'DAMAGED' if bad or cut else 'ok'}: {seen} objects, {bad or 'none'} damaged{lack}{unseen}")
    return 1 if bad or cut else 0


def safe(target: Path, name: str) -> Path:
    """Return the path of a stream's file, which is always inside the target. Raises Unusable."""
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise Unusable(f"{name!r}: not a safe file name")
    return target / name


def show(repository: Repository) -> int:
    """Print what could be restored."""
    for _, body, expired in sorted(repository.backups(), key=lambda found: str(found[1]["created_at"])):
        note = " (expired)" if expired else ""
        print(f"{body['id']}  {body['created_at']}  {body['database']}  {body['source_bytes']} bytes{note}")
    for key in repository.keys.values():
        for name in listed(repository.storage, f"log/{key.id.hex()}")[-1:]:
            end = datetime.fromtimestamp(int(name.split("-")[3]) / 1000, UTC)
            print(f"the log of {key.name} ends at {end.isoformat()}; for a moment up to then:")
            print("    restore BACKUP TARGET --until MOMENT, where BACKUP is the newest one made before MOMENT")
    return 0


def take_log(options: argparse.Namespace, key: Key, body: dict[str, Any], moment: datetime) -> None:
    """Apply the log to the restored backup, or write it beside a cluster, and print the moment that it reaches."""
    if "segment_bytes" in body["facts"]:
        reached = keep_log(options.storage, key, body, moment, options.target)
        print(f"log/ reaches {reached} at least; dbguard-recovery(7) says how the server recovers with it")
    else:
        reached = replay(options.storage, key, body, moment, options.target)
        print(f"the log was applied up to {reached}")
    if (moment - datetime.fromisoformat(reached)).total_seconds() > 2:
        print("that is earlier than requested: the log has nothing nearer", file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """Run the verb; return the exit status."""
    keyed = options.root_key or options.machine_key or options.identity or options.passphrase_file
    if options.verb == "scrub" and (lacking or not keyed):
        print(lacking if keyed else "", end="\n" if keyed else "", file=sys.stderr)
        return scrub(options.storage, None)
    if lacking:
        sys.exit(lacking)
    repository = Repository(options.storage, root_key(options.storage, options))
    if options.identity:  # anybody can make a repository for a recipient; only the right root key yields the mark
        mark = repository.root.derive(b"sheet")[:10].hex()
        shown = "-".join(mark[at : at + 4] for at in range(0, len(mark), 4))
        print(f"mark {shown}: this is your repository only if the recovery sheet shows the same mark", file=sys.stderr)
    if options.verb != "restore":
        return show(repository) if options.verb == "list" else scrub(options.storage, repository)
    found = [(key, body) for key, body, _ in repository.backups() if body["id"].startswith(options.backup.upper())]
    if len(found) != 1:
        raise Unusable(f"{options.backup}: {len(found)} backups have an id that starts with this")
    key, body = found[0]
    moment = datetime.fromisoformat(options.until or body["created_at"])  # fails before anything is written
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    options.target.mkdir(mode=0o700, parents=True)
    mode = body["facts"].get("mode")
    for stream in body["streams"]:
        target = safe(options.target, stream["name"])
        restore(Packs(options.storage, key), stream, target)
        if isinstance(mode, int):  # only when the file is complete
            target.chmod(mode & 0o777)
        print(f"{stream['name']}: {stream['size']} bytes, verified")
    if options.until:
        take_log(options, key, body, moment)
    with open(options.target / "facts.dbguard.json", "xb", opener=private) as file:  # noqa: PTH123
        file.write(canonical(body["facts"]))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the verb."""
    plain, about = argparse.RawDescriptionHelpFormatter, (__doc__ or "").partition("This is a second")[0]
    parser = argparse.ArgumentParser(description=about, formatter_class=plain)
    parser.add_argument("storage", type=Path)
    for name in ("--root-key", "--machine-key", "--identity", "--passphrase-file"):
        parser.add_argument(name, metavar="FILE")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="list the backups")
    verbs.add_parser("scrub", help="compare every object with the hash in its name; with a key, report missing packs")
    verb = verbs.add_parser("restore", help="write one backup to a new directory")
    verb.add_argument("backup")
    verb.add_argument("target", type=Path)
    verb.add_argument("--until", help="apply the log up to this moment")
    try:
        return run(parser.parse_args(arguments))
    except OSError as error:
        print(f"recover: {error.filename or 'reading or writing'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (Unusable, LookupError, ValueError, TypeError, struct.error) as error:
        print(f"recover: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
