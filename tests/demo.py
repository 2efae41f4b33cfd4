"""The demo: the real daemon protects a live SQLite database while a writer keeps changing it.

`python -m tests.demo [DB]` needs no root and leaves nothing behind. With DB it protects that database instead, only
reading it. Everything it prints after `$` is a command that works the same against an installed dbguard.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.workload import consistent, seed


class Demo:
    """One run in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = {**os.environ, "DBGUARD_SOCKET": str(place / "api.sock"), "COLUMNS": "110"}
        self.bin = Path(sys.executable).parent

    def say(self, text: str) -> None:
        """Print one line of explanation."""
        print(f"\n# {text}", flush=True)

    def ctl(self, *words: str, check: bool = True) -> None:
        """Show and run a dbguardctl command."""
        print("$ dbguardctl " + " ".join(words), flush=True)
        code = subprocess.run([self.bin / "dbguardctl", *words], env=self.environment, check=False).returncode
        if check and code not in (0, 3):
            raise SystemExit(f"the command ended with {code}")

    def ask(self, *words: str) -> dict[str, object]:
        """Run a dbguardctl command quietly and return its JSON."""
        argv = [self.bin / "dbguardctl", "--json", *words]
        done = subprocess.run(argv, env=self.environment, check=False, capture_output=True)
        if done.returncode not in (0, 3):
            raise SystemExit(done.stderr.decode())
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run dbguardd on an empty policy until the block ends."""
        policy = self.place / "policy.toml"
        policy.write_text("version = 1\n")
        policy.chmod(0o600)
        log = (self.place / "dbguardd.log").open("wb")
        argv = [self.bin / "dbguardd", "--policy", policy, "--state", self.place / "state"]
        argv += ["--socket", self.place / "api.sock"]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while not (self.place / "api.sock").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((self.place / "dbguardd.log").read_text())
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(60)
            log.close()


def main() -> None:
    """Protect, back up, prove, restore, and say what that means."""
    theirs = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 and sys.argv[1] else None
    place = Path(tempfile.mkdtemp(prefix="dbguard-demo-"))
    started = time.monotonic()
    writer = None
    demo = Demo(place)
    try:
        path = theirs or place / "shop.db"
        if theirs is None:
            demo.say("A shop's database, and an application that keeps writing to it: 200 transactions a second.")
            seed(path)
            argv = [sys.executable, "-m", "tests.workload", str(path), "170", "200"]
            writer = subprocess.Popen(argv, stdout=subprocess.PIPE)
            assert writer.stdout is not None
            writer.stdout.readline()
        else:
            demo.say(f"Your database {path}. It is only read.")
        with demo.daemon():
            show(demo, path, writer is not None)
    finally:
        if writer is not None:
            writer.terminate()
            writer.communicate()
        shutil.rmtree(place, ignore_errors=True)
    print(
        f"\n# Done in {time.monotonic() - started:.0f} s. The daemon has stopped and everything of the demo is removed."
    )


def show(demo: Demo, path: Path, shop: bool) -> None:
    """The tour itself."""
    demo.say("Protect it: dbguard writes the policy, makes a full backup and proves it by a real test restore.")
    demo.ctl("protect", str(path), "--name", "demo")
    demo.say("Some seconds later only the changed pages are stored; that backup is proven as well.")
    demo.ctl("backup", "demo", "--verify")
    demo.ctl("list", "demo", "--why")
    demo.say("What could be restored, to which moment, how fast, and when was that last proven?")
    demo.ctl("status")
    target = demo.place / "restored.db"
    demo.say("The command that the status line is about. It never overwrites anything.")
    demo.ctl("restore", "demo", "--to", str(target))
    if shop:
        verdict = "agree" if consistent(target) else "DO NOT AGREE"
        demo.say(f"The application's own check on the restored copy: its sums {verdict}.")
        if verdict != "agree":
            raise SystemExit(1)


if __name__ == "__main__":
    main()
