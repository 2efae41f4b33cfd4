"""The soak of the follower: random databases, writers, checkpoints and kills; each position must be a real moment.

`python -m tests.soak_follow [SECONDS] [SEED]`. Ends when the time is over and 1,000 restores to random positions were
right, or with 1 and why at the first that is not. One line a minute.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "engines"))

from follow_world import World, until, wait_a_while  # noqa: E402

POSITIONS = 1000
KINDS = ["plain", "keyed", "shrink", "schema", "slow"]


def story(place: Path, dice: random.Random, done: Counter[str]) -> None:
    """Use one database for some seconds, and prove its log."""
    page_size = dice.choice([512, 1024, 4096, 4096, 4096, 16384, 65536])
    pace = {
        "look_seconds": dice.choice([0.02, 0.05, 0.2]),
        "segment_bytes": dice.choice([30_000, 300_000, 4 << 20]),
        "turn_frames": dice.choice([10, 40, 200, 1000]),
        "audit_seconds": dice.choice([0.0, 0.5, 86_400.0]),
        "scan_bytes": dice.choice([1 << 16, 32 << 20]),
    }
    world = World(place, dice.randrange(10**9), page_size=page_size, vacuum=dice.choice([0, 1, 2]), **pace)
    writers = dice.choice([1, 1, 1, 2, 3])
    options = {
        "auto": dice.choice([0, 1, 5, 50, 1000]),
        "kinds": dice.choices(KINDS, k=4) + ["big"] * (dice.random() < 0.3),
        "big": dice.choice([50, 500, 2000]),
        "cache": dice.choice([5, 200]),
        "timeout": dice.choice([0, 30]),
        "pause": dice.choice([0.001, 0.004, 0.02]),
        "often": dice.choice([5, 30]),
        "between": dice.choices(["vacuum", "incremental", "reopen", "rollback", "nothing"], k=3),
    }
    killed = 0
    with ExitStack() as users:
        world.start()
        users.callback(world.stop)
        running = [users.enter_context(world.writer(who, **options)) for who in range(writers)]
        if dice.random() < 0.7:
            modes = dice.sample(["PASSIVE", "FULL", "RESTART", "TRUNCATE"], dice.randint(1, 4))
            users.enter_context(world.checkpoints(*modes, pause=dice.choice([0.01, 0.1, 0.5])))
        for _ in range(8):
            wait_a_while(dice.random() * 0.8)
            match dice.randrange(6):
                case 0:
                    world.kill()
                    wait_a_while(dice.choice([0.0, 0.3]))
                    world.start()
                    killed += 1
                    done["followers killed"] += 1
                case 1:
                    if not world.ended and (keeper := world.keeper()):
                        os.kill(keeper, signal.SIGKILL)
                        until(lambda: world.ended, "the end of a follower without a child")
                        world.start()
                        killed += 1
                        done["children killed"] += 1
                case 2:
                    who = dice.randrange(writers)
                    running[who].kill()
                    running[who].wait()
                    running[who] = users.enter_context(world.writer(who, **options))
                    done["writers killed"] += 1
                case _:
                    world.base()
                    done["bases"] += 1
        wait_a_while(0.3)
        for writer in running:
            writer.stdin.close()
            writer.wait(120)
        world.caught_up()
        world.base()
    known = ("WorkerDied", "LogBroken", *["SourceChanged"] * bool(killed))  # who closes last then deletes the log
    unexpected = [end for end in world.ends() if end[0] not in known]
    assert not unexpected, unexpected
    assert killed or not world.ends(), world.ends()
    audits = [told[1] for told in world.told() if told[0] == "audited"]
    assert not any(audits), audits
    world.prove(most=15, writers=writers, needed=0)
    assert world.gaps <= killed
    done["restores"] += world.positions
    done["sums equal"] += world.sums
    done["files compared"] += len(audits)
    done["gaps said"] += world.gaps
    done["stories"] += 1
    if world.bases and world.bases[-1].chain == world.gaps:
        world.prove_end()
        done["equal ends"] += 1


def main() -> int:
    """Repeat that with other databases until the time is over."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    number = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    print(f"soak of the follower for {seconds:g} s, seed {number}", flush=True)
    began = spoke = time.monotonic()
    done: Counter[str] = Counter()
    while time.monotonic() - began < seconds or done["restores"] < POSITIONS:
        place = Path(tempfile.mkdtemp(prefix="dbg-follow-"))
        try:
            story(place, random.Random(number + done["stories"]), done)
        except AssertionError as error:
            print(f"BROKEN: {error}\nseed {number + done['stories']}; everything is still in {place}")
            return 1
        shutil.rmtree(place)
        if time.monotonic() - spoke >= 60:
            spoke = time.monotonic()
            print(f"{spoke - began:6.0f} s: {', '.join(f'{n} {what}' for what, n in done.items())}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in done.items()))
    print("no commit was lost, torn, misordered or invented")
    return 0


if __name__ == "__main__":
    sys.exit(main())
