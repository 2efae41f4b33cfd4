"""Processes that use a followed SQLite database: python follow_user.py ACTION DB ARGUMENTS, the last one in JSON.

`write` numbers its commits and notes each one in a ledger with the time, before (b) and after (a) the commit. Every
copy of a later moment must have the commits that were acknowledged there, and no copy may have one that was not begun.
`some` makes a given number of commits. `checkpoint` makes checkpoints of all modes. All of them end when their input
ends. `follow` is a follower in a process of its own, which can be killed.
"""

import json
import os
import pickle
import random
import select
import sqlite3
import sys
import time

STATE = """SELECT (SELECT printf('%d rows %d bytes', count(*), sum(length(v))) FROM keyed)
|| (SELECT printf(', %d rows %d bytes %d', count(*), sum(length(x)), sum(id)) FROM data)"""


def ended(seconds=0.0):
    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 512)


def busy(action):
    """Retry while the database is busy: the follower blocks writers for a moment, and busy_timeout may be 0."""
    met = 0
    while True:
        try:
            action()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            met += 1
            time.sleep(0.0005)
        else:
            return met


class Writer:
    """One of several writers. Writer k of n makes the commits k, k + n, k + 2n..., and has a ledger of its own."""

    def __init__(self, path, ledger, options):
        self.path, self.options = path, options
        self.dice = random.Random(options["seed"])
        self.ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.who = options.get("who", 0)
        self.met = 0
        self.open()
        last = "SELECT coalesce(max(n), 0) FROM ledger WHERE who = ?"
        self.number = self.db.execute(last, (self.who,)).fetchone()[0]

    def open(self):
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=self.options.get("timeout", 30))
        busy(lambda: self.db.execute("PRAGMA synchronous=OFF"))
        self.db.execute(f"PRAGMA wal_autocheckpoint={self.options.get('auto', 1000)}")
        self.db.execute(f"PRAGMA cache_size={self.options.get('cache', 200)}")

    def note(self, what):
        os.write(self.ledger, f"{what} {self.number} {time.time():.6f}\n".encode())

    def commit(self):
        """Make one numbered commit."""
        self.number += 1
        self.note("b")
        db, dice, kinds = self.db, self.dice, self.options["kinds"]
        self.met += busy(lambda: db.execute("BEGIN IMMEDIATE"))
        kind = dice.choice(kinds)
        if kind == "big":
            size = self.options.get("big", 3000)
            db.executemany("INSERT INTO data(x) VALUES(randomblob(?))", ((dice.randrange(1500),) for _ in range(size)))
            db.execute("DELETE FROM data WHERE id % 7 = ?", (self.number % 7,))
        elif kind == "shrink":
            db.execute("DELETE FROM data WHERE id > (SELECT max(id) FROM data) / ?", (dice.choice([1, 2, 4]),))
        elif kind == "schema":
            db.execute(f"DROP TABLE IF EXISTS extra{self.number % 3}")
            db.execute(f"CREATE TABLE extra{self.number % 3}(a, b UNIQUE)")
            db.execute(f"INSERT INTO extra{self.number % 3} VALUES(1, randomblob(?))", (dice.randrange(9000),))
        elif kind == "slow":
            db.execute("UPDATE data SET x = 'slow' WHERE id = 1")
            time.sleep(dice.random() * 0.05)
        elif kind == "keyed":
            db.execute(
                "INSERT OR REPLACE INTO keyed VALUES(?, randomblob(?))", (dice.randrange(300), dice.randrange(900))
            )
        else:
            db.execute("INSERT INTO data(x) VALUES(randomblob(?))", (dice.randrange(700),))
            db.execute(
                "UPDATE data SET x = randomblob(length(x)) WHERE id = abs(random()) % (SELECT max(id) FROM data)"
            )
        self.sign()
        self.met += busy(lambda: db.execute("COMMIT"))
        self.note("a")

    def sign(self):
        """Record, in the transaction, what the tables contain after it."""
        small = "big" not in self.options["kinds"]
        state = self.db.execute(STATE).fetchone()[0] if small else None
        self.db.execute("INSERT INTO ledger VALUES(?, ?, ?)", (self.who, self.number, state))

    def between(self):
        """Do something that is not a numbered commit and does not affect what the ledger says."""
        db, kind = self.db, self.dice.choice(self.options.get("between", ["nothing"]))
        if kind == "vacuum":
            busy(lambda: db.execute("VACUUM"))
        elif kind == "incremental":
            busy(lambda: db.execute("PRAGMA incremental_vacuum(50)").fetchall())
        elif kind == "reopen":
            db.close()
            self.open()
        elif kind == "rollback":
            busy(lambda: db.execute("BEGIN IMMEDIATE"))
            db.execute("INSERT INTO ledger VALUES(-1, -1, 'never')")
            db.executemany("INSERT INTO data(x) VALUES(randomblob(?))", [(900,)] * 1000)  # more than its cache has
            db.execute("ROLLBACK")

    def run(self):
        pause, often = self.options.get("pause", 0.004), self.options.get("often", 30)
        while not ended(self.dice.random() * pause):
            self.commit()
            if self.number % often == 0:
                self.between()
        print(json.dumps({"commits": self.number, "busy": self.met}), flush=True)
        self.db.close()

    def some(self, count, hold):
        """Make `count` commits; with `hold`, then one that stays open until the input ends."""
        for _ in range(count):
            self.commit()
        if hold:
            self.number += 1
            self.note("b")
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("INSERT INTO keyed VALUES(?, randomblob(300))", (-self.number,))
            self.sign()
        self.db.execute("SELECT count(*) FROM ledger").fetchone()  # from now on it uses the log
        print("{}", flush=True)
        while not ended(5):
            pass
        if hold:
            self.db.execute("COMMIT")
            self.note("a")
        self.db.close()


def checkpoint(path, options):
    """Checkpoint from outside, in every mode, all the time; now and then as a stranger who opens and closes it."""
    dice = random.Random(options["seed"])
    while not ended(dice.random() * options.get("pause", 0.02)):
        db = sqlite3.connect(path, isolation_level=None, timeout=options.get("timeout", 0))
        for _ in range(dice.randrange(1, 6)):
            try:
                db.execute(f"PRAGMA wal_checkpoint({dice.choice(options['modes'])})").fetchall()
            except sqlite3.OperationalError:  # the database is locked
                time.sleep(0.001)
        db.close()


class Shelf:
    """A flow.LogSink that keeps everything in a file of pickles, each written by one call, until told to stop."""

    def __init__(self, file):
        self.file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def put(self, *what):
        raw = pickle.dumps(what)
        os.write(self.file, len(raw).to_bytes(8, "big") + raw)

    def begin(self, place, *, continued, because):
        self.put("begin", dict(place), continued, because, time.time())

    def ship(self, segment):
        self.put("segment", segment, time.time())

    def audited(self, wrong):
        self.put("audited", wrong)

    def held(self, log_bytes, by):
        self.put("held", log_bytes, list(by))

    def reached(self, at):
        self.put("reached", at)


def follow_it(path, file, options):
    """Follow in this process, and write down why it ended."""
    from dbguardd.engines.sqlite.follow import follow  # noqa: PLC0415 - the other actions open it with sqlite3
    from dbguardd.engines.sqlite.pace import Pace  # noqa: PLC0415

    shelf, resume = Shelf(file), options.pop("resume", None)
    try:
        follow(path, Pace(**options), shelf, resume)
    except Exception as error:  # noqa: BLE001
        shelf.put("end", type(error).__name__, str(error))


def read_shelf(file, at):
    """Return what a Shelf keeps from a place in its file on, and the place after it; not what is half written."""
    found = []
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head, "big")
        if len(raw := file.read(length)) < length:
            break
        at += 8 + length
        found.append(pickle.loads(raw))
    return found, at


def main(action, path, *rest):
    options = json.loads(rest[-1])
    if action == "some":
        Writer(path, rest[0], options).some(options["count"], options["hold"])
    elif action == "write":
        writer = Writer(path, rest[0], options)
        print("{}", flush=True)
        writer.run()
    elif action == "checkpoint":
        print("{}", flush=True)
        checkpoint(path, options)
    else:
        follow_it(path, rest[0], options)


class Hooked(Shelf):
    """A follower in this process, which does other things when it is told something."""

    def __init__(self, world, begin=lambda: None, ship=lambda: None, alive=lambda: None, look=lambda: None, **pace):
        super().__init__(world.shelf)
        self.world, self.hooks, self.pace = world, (begin, ship, alive, look), {**world.pace, **pace}

    def follow(self, resume=None):
        from dbguardd.engines.sqlite.follow import follow
        from dbguardd.engines.sqlite.pace import Pace

        try:
            follow(str(self.world.path), Pace(**self.pace), self, resume)
        finally:
            os.close(self.file)

    def begin(self, place, *, continued, because):
        super().begin(place, continued=continued, because=because)
        self.hooks[0]()

    def ship(self, segment):
        super().ship(segment)
        self.hooks[1]()

    def reached(self, at):
        super().reached(at)
        self.hooks[2 if at is None else 3]()


if __name__ == "__main__":
    main(*sys.argv[1:])
