"""The soak: the real daemon, an application that never stops writing, and a dice that kills what is working.

`python -m tests.soak [SECONDS] [SEED]`. What was acknowledged must be listed, must restore, and its sums must agree,
whatever was killed when; memory and descriptors of the daemon must not grow. Ends with 1 and says why if not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.workload import consistent, seed

BIN = Path(sys.executable).parent
WEIGHTS = {"backup": 8, "restore": 4, "verify": 2, "prune": 2, "check": 1, "kill_worker": 6, "kill_daemon": 3}
KEPT = 5
MAX_RSS_KIB = 100 << 10
MAX_DESCRIPTORS = 100


class Broken(Exception):
    """A promise that did not hold."""


class Soak:
    """One run in a directory of its own."""

    def __init__(self, place: Path, dice: random.Random) -> None:
        self.place = place
        self.dice = dice
        self.done: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.largest_kib = 0
        self.environment = {**os.environ, "DBGUARD_SOCKET": str(place / "api.sock")}
        self.log = (place / "dbguardd.log").open("ab")
        self.daemon = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start a daemon and wait until it answers."""
        argv = [BIN / "dbguardd", "--policy", self.place / "policy.toml", "--state", self.place / "state"]
        daemon = subprocess.Popen([*argv, "--socket", self.place / "api.sock"], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while self.ctl("status")[0] not in (0, 3):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise Broken("the daemon does not start:\n" + (self.place / "dbguardd.log").read_text()[-4000:])
            time.sleep(0.05)
        return daemon

    def ctl(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run a command; return its exit status and its answer, or the problem."""
        argv = [BIN / "dbguardctl", "--json", *words]
        done = subprocess.run(argv, env=self.environment, capture_output=True, check=False, timeout=300)
        with suppress(ValueError):
            return done.returncode, json.loads(done.stdout or done.stderr)
        return done.returncode, {"message": (done.stdout + done.stderr).decode(errors="replace")[-2000:]}

    def must(self, *words: str) -> dict[str, Any]:
        """Run a command that has to succeed; to need attention is a success."""
        status, answer = self.ctl(*words)
        if status not in (0, 3):
            raise Broken(f"{' '.join(words)} ended with {status}: {json.dumps(answer)[:2000]}")
        return answer

    def backup(self) -> None:
        """Make a backup that nothing disturbs."""
        words = ["backup", "shop"] + (["--full"] if self.dice.random() < 0.1 else [])
        self.acknowledged.add(self.must(*words)["job"]["result"]["backup"]["id"])

    def restore(self) -> None:
        """Restore any backup that was acknowledged, and let the application check its sums."""
        if standing := sorted(self.standing()):
            self.restored(self.dice.choice(standing))

    def restored(self, backup: str) -> None:
        """Restore one backup to a new place and check it."""
        target = self.place / "look.db"
        self.must("restore", "shop", "--id", backup, "--to", str(target))
        if not consistent(target):
            raise Broken(f"{backup}: restored, and its sums do not agree")
        for path in self.place.glob("look.db*"):
            path.unlink()

    def verify(self) -> None:
        """Prove any acknowledged backup."""
        if standing := sorted(self.standing()):
            self.must("verify", self.dice.choice(standing))

    def prune(self) -> None:
        """Delete what the policy does not keep, and free its space."""
        self.must("prune", "shop", "--confirm", "shop")

    def check(self) -> None:
        """Have every byte in the repository read."""
        self.must("check", "shop", "--data")

    def kill_worker(self) -> None:
        """Kill one process of a running job at any moment; an acknowledgement that came nevertheless counts."""
        self.disturbed(self.kill_some_worker)

    def kill_daemon(self) -> None:
        """Kill the daemon at any moment, and start it again."""
        self.disturbed(self.daemon.kill)
        self.daemon.wait()
        self.daemon = self.start()

    def disturbed(self, disturb: Any) -> None:
        """Make a backup, and do something to it after a while."""
        argv = [BIN / "dbguardctl", "--json", "backup", "shop"]
        asking = subprocess.Popen(argv, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(self.dice.random() * 0.8)  # not waiting for anything: the moment is meant to be random
        disturb()
        answer = asking.communicate(timeout=300)[0]
        if asking.returncode in (0, 3):
            self.acknowledged.add(json.loads(answer)["job"]["result"]["backup"]["id"])
            self.done["acknowledged all the same"] += 1

    def kill_some_worker(self) -> None:
        """Kill one of the daemon's children, if it has any just now."""
        children = Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children").read_text().split()
        if children:
            with suppress(ProcessLookupError):
                os.kill(int(self.dice.choice(children)), signal.SIGKILL)
                self.done["workers killed"] += 1

    def standing(self) -> set[str]:
        """Return what was acknowledged and is listed; what is not, must be older than the last ones that are kept."""
        listed = {row["id"] for row in self.must("list", "shop", "--all")["backups"]}
        for backup in self.acknowledged - listed:
            if sum(other > backup for other in listed) < KEPT:
                raise Broken(f"{backup}: acknowledged, among the last {KEPT}, and not listed")
        self.acknowledged &= listed
        return set(self.acknowledged)

    def look(self) -> None:
        """Check what must hold at every moment."""
        self.standing()
        if self.daemon.poll() is not None:
            raise Broken(f"the daemon ended with {self.daemon.returncode}")
        pages = int(Path(f"/proc/{self.daemon.pid}/statm").read_text().split()[1])
        self.largest_kib = max(self.largest_kib, pages * (os.sysconf("SC_PAGE_SIZE") >> 10))
        descriptors = len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))
        if self.largest_kib > MAX_RSS_KIB or descriptors > MAX_DESCRIPTORS:
            raise Broken(f"the daemon grows: {self.largest_kib} KiB, {descriptors} descriptors")

    def run(self, seconds: float) -> None:
        """Do what the dice says until the time is over, then the whole check."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            step = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            getattr(self, step)()
            self.done[step] += 1
            self.look()
        self.check()
        for backup in sorted(self.standing())[-3:]:
            self.restored(backup)

    def stop(self) -> None:
        """Stop the daemon as the service manager does."""
        self.daemon.terminate()
        status = self.daemon.wait(120)
        self.log.close()
        if status != 0:
            raise Broken(f"the daemon ended with {status} when asked to stop")


def main() -> int:
    """Run, and say what was survived."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    number = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    print(f"soak for {seconds:g} s, seed {number}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="dbguard-soak-"))
    database = place / "shop.db"
    seed(database)
    policy = place / "policy.toml"
    policy.write_text(
        f'version = 1\n[database.shop]\nengine = "sqlite"\npath = "{database}"\nverify = "off"\n'
        f'keep = {{ last = {KEPT} }}\nretry = {{ times = 1, wait = "1s" }}\n[storage.local]\ntype = "directory"\n'
        f'path = "{place}/store"\ngrace = "0s"\n'
    )
    policy.chmod(0o600)
    writer = subprocess.Popen([sys.executable, "-m", "tests.workload", database, str(seconds + 3600), "300"],
                              stdout=subprocess.DEVNULL)  # fmt: skip
    soak, broken = None, ""
    try:
        soak = Soak(place, random.Random(number))
        soak.run(seconds)
        if writer.poll() is not None:
            raise Broken(f"the application ended with {writer.returncode}: it must never notice us")
    except Broken as error:
        broken = str(error)
    finally:
        writer.terminate()
        writer.wait()
        if soak is not None:
            try:
                soak.stop()
            except (Broken, subprocess.TimeoutExpired) as error:
                broken = broken or str(error)
                soak.daemon.kill()
    if soak is not None:
        print(", ".join(f"{count} {what.replace('_', ' ')}" for what, count in soak.done.most_common()))
        print(f"{len(soak.acknowledged)} backups stand; the daemon took {soak.largest_kib >> 10} MiB at most")
    if broken:
        print(f"BROKEN: {broken}\nseed {number}; everything is still in {place}")
        return 1
    shutil.rmtree(place)
    print("every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
