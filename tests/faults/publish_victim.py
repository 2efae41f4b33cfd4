"""A process that publishes until something happens to it. Every line on its standard output is an acknowledged object.

publish_victim.py once ROOT nameless|named           puts OBJECTS, tells refusals on standard error
publish_victim.py nursery ROOT nameless|named KILLS SEED   forks publishers, kills them at random moments
    and tells on standard error how many unfinished files they left
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from dbguardd.errors import GuardError
from dbguardd.storage.directory import Directory

OBJECTS = tuple(bytes([number]) * size for number, size in enumerate((5000, 10, 200_000)))
BEGIN = b"the storage is opened now\n"


def name_of(data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"packs/{digest[:1]}/{digest}"


def acknowledge(fd: int, data: bytes) -> None:
    os.write(fd, f"{name_of(data)}\n".encode())


def once(root: Path, nameless: bool) -> int:
    os.write(2, BEGIN)
    try:
        storage = Directory(root, create=True, nameless=nameless)
    except GuardError as error:
        os.write(2, f"{error.code} {error.message} {error.detail}\n".encode())
        return 3
    refused = 0
    for data in OBJECTS:
        try:
            storage.put(name_of(data), data)
        except GuardError as error:
            os.write(2, f"{error.code} {error.message} {error.detail}\n".encode())
            refused = 3
        else:
            acknowledge(1, data)
    return refused


def publish_forever(root: Path, nameless: bool, fd: int, seed: int) -> None:
    storage, dice = Directory(root, create=True, nameless=nameless), random.Random(seed)
    while True:
        data = dice.randbytes(dice.choice((1, 5000, 100_000)))
        storage.put(name_of(data), data)
        acknowledge(fd, data)


def nursery(root: Path, nameless: bool, kills: int, seed: int) -> int:
    dice = random.Random(seed)
    unfinished = 0
    for life in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            try:
                publish_forever(root, nameless, writer, seed * 1_000_000 + life)
            finally:
                os._exit(9)
        os.close(writer)
        for _ in range(dice.choice((0, 0, 1, 2))):
            os.write(1, os.read(reader, 4096))
        time.sleep(dice.random() * 0.004)  # not waiting for anything: the moment is meant to be random
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while rest := os.read(reader, 65536):
            os.write(1, rest)
        os.close(reader)
        if root.exists():
            unfinished += sum(path.name.startswith(".tmp-") for path in root.iterdir())
    os.write(2, f"{unfinished}\n".encode())
    return 0


def main() -> int:
    mode, root, names, *more = sys.argv[1:]
    if mode == "once":
        return once(Path(root), names == "nameless")
    return nursery(Path(root), names == "nameless", *map(int, more))


if __name__ == "__main__":
    sys.exit(main())
