"""The soak: the real daemon, an application that never stops writing, and random disturbances and kills.

`python -m tests.soak [SECONDS] [SEED]`. The ledger knows what was acknowledged. It must be listed, must restore, and
its sums must agree, whatever was killed when; the application must not notice; nothing foreign may stay beside its
database; memory and descriptors of the daemon must not grow. One line a minute; ends with 1 and says why if not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.live import Broken, Live, asking, gone
from tests.workload import consistent, seed

WEIGHTS = {
    "backup": 8,
    "restore": 4,
    "verify": 3,
    "prune": 3,
    "check": 1,
    "write": 4,
    "kill_worker": 8,
    "kill_daemon": 3,
    "restart": 1,
}
KEPT = 5
MAX_RSS_KIB = 100 << 10
MAX_DESCRIPTORS = 100
POLICY = """[defaults]
retry = {{ times = 1, wait = "1s" }}
[database.shop]
engine = "sqlite"
path = "{place}/live/shop.db"
verify = "off"
expire = "off"
keep = {{ last = {kept} }}
[storage.local]
type = "directory"
path = "{place}/store"
grace = "0s"
"""
DISTURBED = (("backup", "shop"), ("backup", "shop"), ("verify", "shop"), ("prune", "shop", "--confirm", "shop"))


class Soak:
    """One run in a directory of its own."""

    def __init__(self, place: Path, dice: random.Random) -> None:
        self.place = place
        self.path = place / "live" / "shop.db"
        self.dice = dice
        self.done: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.largest_kib = 0
        self.live = Live(place)
        self.live.write_policy(POLICY.format(place=place, kept=KEPT))

    # ------------------------------------------------------------------------------------------------ what is done

    def backup(self) -> None:
        """Make a backup undisturbed."""
        self.acknowledged.add(self.live.backup(*["--full"] * (self.dice.random() < 0.1)))

    def restore(self) -> None:
        """Restore any backup that was acknowledged, and let the application check its sums."""
        if standing := sorted(self.standing()):
            self.restored(self.dice.choice(standing))

    def restored(self, backup: str) -> None:
        """Restore one backup to a new place and check it."""
        target = self.place / "look.db"
        self.live.must("restore", "shop", "--id", backup, "--to", str(target))
        if not consistent(target):
            raise Broken(f"{backup}: restored, and its sums do not agree")
        for path in self.place.glob("look.db*"):
            path.unlink()

    def verify(self) -> None:
        """Prove any acknowledged backup."""
        if standing := sorted(self.standing()):
            self.live.must("verify", self.dice.choice(standing))

    def prune(self) -> None:
        """Delete what the policy does not keep, and free its space."""
        self.live.must("prune", "shop", "--confirm", "shop")

    def check(self) -> None:
        """Let a check read every byte in the repository."""
        result = self.live.must("check", "shop", "--data")["job"]["result"]
        if result["damaged"]:
            raise Broken(f"check found damage: {json.dumps(result['findings'])[:2000]}")

    def write(self) -> None:
        """Do something that applications do now and then besides writing rows."""
        with sqlite3.connect(self.path, timeout=60, isolation_level=None) as db:
            match self.dice.randrange(4):
                case 0:
                    db.execute("vacuum")
                case 1:
                    db.execute("delete from document")
                case 2:
                    name = f"extra{self.dice.randrange(10)}"
                    db.execute(f"drop table if exists {name}")
                    db.execute(f"create table {name} (a, b)")
                    db.execute(f"insert into {name} values (1, randomblob({self.dice.randrange(200_000)}))")
                case _:
                    for _ in range(20):
                        row = (f"doc-{self.dice.randrange(500)}", self.dice.randbytes(self.dice.randrange(20_000)))
                        db.execute("insert or replace into document values (?, ?)", row)
        db.close()

    def kill_worker(self) -> None:
        """Kill one process of a running job at a random moment; an acknowledgement that came before counts."""
        self.disturbed(self._kill_some_worker)

    def kill_daemon(self) -> None:
        """Kill the daemon at a random moment, and start it again."""
        self.disturbed(self._kill_daemon)

    def restart(self) -> None:
        """Stop the daemon at a random moment as the service manager does, and start it again."""
        self.disturbed(self._restart)

    def disturbed(self, disturb: Callable[[], None]) -> None:
        """Start a job, and disturb it after a while."""
        words = self.dice.choice(DISTURBED)
        with asking(self.live, *words) as client:
            with suppress(subprocess.TimeoutExpired):
                client.wait(self.dice.random())  # not waiting for anything: the moment is meant to be random
            disturb()
            answer = client.communicate(timeout=300)[0]
        if words[0] == "backup" and client.returncode in (0, 3):
            self.acknowledged.add(json.loads(answer)["job"]["result"]["backup"]["id"])
            self.done["acknowledged all the same"] += 1

    def _kill_some_worker(self) -> None:
        if workers := self.live.workers():
            with suppress(ProcessLookupError):
                os.kill(self.dice.choice(workers), signal.SIGKILL)
                self.done["workers killed"] += 1

    def _kill_daemon(self) -> None:
        workers = self.live.workers()
        self.live.kill()
        gone(workers)
        self.live.start()
        self.live.idle()  # it makes up for what was cut short

    def _restart(self) -> None:
        if (status := self.live.stop()) != 0:
            raise Broken(f"the daemon ended with {status} when asked to stop")
        self.live.start()
        self.live.idle()

    # ------------------------------------------------------------------------------------------------ what must hold

    def standing(self) -> set[str]:
        """Return the acknowledged backups that are listed; others must be older than the last ones that are kept."""
        listed = set(self.live.listed())
        for backup in self.acknowledged - listed:
            if sum(other > backup for other in listed) < KEPT:
                raise Broken(f"{backup}: acknowledged, among the last {KEPT}, and not listed")
        self.acknowledged &= listed
        return set(self.acknowledged)

    def look(self) -> None:
        """Check what must hold at every moment."""
        self.standing()
        process = self.live.process
        if process is None or process.poll() is not None:
            raise Broken("the daemon has ended")
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        self.largest_kib = max(self.largest_kib, pages * (os.sysconf("SC_PAGE_SIZE") >> 10))
        descriptors = _descriptors(process.pid)
        if self.largest_kib > MAX_RSS_KIB or descriptors > MAX_DESCRIPTORS:
            raise Broken(f"the daemon grows: {self.largest_kib} KiB, {descriptors} descriptors")
        foreign = {path.name for path in self.path.parent.iterdir()} - {f"shop.db{s}" for s in ("", "-wal", "-shm")}
        if foreign - {"shop.db-journal"}:
            raise Broken(f"beside the live database lie {sorted(foreign)}")

    def run(self, seconds: float) -> None:
        """Do random things until the time is over, then check everything."""
        began = spoke = time.monotonic()
        self.live.start()
        while (now := time.monotonic()) - began < seconds:
            step = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            try:
                getattr(self, step)()
                self.look()
            except Broken as error:
                raise Broken(f"{step}: {error}") from error
            self.done[step] += 1
            if now - spoke >= 60:
                spoke = now
                print(f"{now - began:6.0f} s: {self.summary()}", flush=True)
        self.check()
        for backup in sorted(self.standing()):
            self.restored(backup)
        if (status := self.live.stop()) != 0:
            raise Broken(f"the daemon ended with {status} when asked to stop")

    def summary(self) -> str:
        """Return in one line what was done."""
        done = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.done.most_common())
        return f"{done}; {len(self.acknowledged)} backups stand; {self.largest_kib >> 10} MiB at most"


def _descriptors(pid: int) -> int:
    """Return the number of the daemon's open files; 0 unless we are root, the only user who can see them."""
    return len(os.listdir(f"/proc/{pid}/fd")) if os.geteuid() == 0 else 0


def main() -> int:
    """Run the soak, and print what was done."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    number = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    print(f"soak for {seconds:g} s, seed {number}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="dbg-soak-"))
    soak, broken = Soak(place, random.Random(number)), ""
    soak.path.parent.mkdir()
    seed(soak.path)
    argv = [sys.executable, "-m", "tests.workload", str(soak.path), str(seconds + 86400), "100"]
    writer = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        soak.run(seconds)
        if writer.poll() is not None:
            raise Broken(f"the application ended with {writer.returncode}: it must never notice us")
    except Broken as error:
        broken = str(error)
    finally:
        writer.kill()
        writer.wait()
        soak.live.stop(signal.SIGKILL)
    print(soak.summary())
    if broken:
        print(f"BROKEN: {broken}\nseed {number}; everything is still in {place}")
        return 1
    shutil.rmtree(place)
    print("every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
