"""The policy in force: loaded, replaced as a whole or not at all, and what it says about one job.

1. At start, a policy with mistakes is fatal. Later it is refused, and the old one stays in force.
2. A reload that would delete existing backups at once is refused until a user accepts it. A policy that was changed
   that way while the daemon was down is in force at start, but nothing of these databases expires until then.
3. What was last accepted is stored in accepted.json beside the catalog, so that it survives a lost catalog. Until the
   catalog has read a storage (again), nobody knows what a policy would delete there: nothing is accepted and nothing
   expires.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dbguardd.catalog import Catalog, coverage, to_moment
from dbguardd.daemon.live import ERRANDS, JobTerms, Order
from dbguardd.durable import replace_file
from dbguardd.errors import Busy, GuardError, Internal, NotFound, PolicyShrinks, Usage, no_database, of_file
from dbguardd.policy.accounts import uid_of_user
from dbguardd.policy.load import Host, Loaded, load
from dbguardd.policy.model import Storage
from dbguardd.policy.policy import Guarded, Policy, database_spec
from dbguardd.requests import NOWHERE, QUESTION_VERBS
from dbguardd.rules import reliance, retention
from dbguardd.rules.backup_state import BackupState
from dbguardd.states import SAFETY_NOTE, Grade
from dbguardd.wire import BackupRow

Json = dict[str, Any]
Going = Mapping[str, Mapping[str, tuple[str, ...]]]
"""By database: the ids of the backups that a policy would delete, with the reasons."""
LOG = "log"
"""Stands in Going instead of an id if a part of the log would be deleted: it has no grace and cannot be recalled."""

_OF_ORPHANS = frozenset(("verify", "restore", "check", "expire", *QUESTION_VERBS))


class PolicyInForce:
    """The policy in force of one daemon."""

    def __init__(self, path: Path, state: Path, catalog: Catalog, now: Callable[[], datetime]) -> None:
        self.path = path
        self.state = state
        self._catalog = catalog
        self._now = now
        self._host = Host(str(state))
        self._loaded: Loaded | None = None
        self.loaded_at = now()
        self.problem: GuardError | None = None  # of the last reload
        self.frozen: Going = {}  # the databases of which nothing expires, and why

    @property
    def loaded(self) -> Loaded:
        """The policy that was loaded last, with its files. Raises Internal before start()."""
        if self._loaded is None:
            raise Internal(f"{self.path}: the policy is not loaded yet")
        return self._loaded

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.loaded.policy

    def start(self) -> None:
        """Load for the first time. Raises PolicyInvalid, PolicyUnsafe."""
        loaded = self.read()
        self.frozen = self.going(loaded.policy)
        self._loaded, self.loaded_at = loaded, self._now()
        if self.frozen:
            self.problem = shrinks(self.frozen)
        else:
            self._accept(loaded.policy)

    def reload(self, *, accepted: bool = False) -> None:
        """Put into force what the files say now, or raise why not: PolicyInvalid, PolicyUnsafe, PolicyShrinks.

        With `accepted`, even if it deletes backups.
        """
        try:
            loaded = self.read()
            going = {} if accepted else self.going(loaded.policy)
            if going:
                raise shrinks(going)
        except GuardError as error:
            self.problem = error
            raise
        self._take(loaded)

    def settle(self) -> None:
        """Recompute what the policy in force would delete, after the catalog has read a storage."""
        was, self.frozen = self.frozen, self.going(self.policy)
        if self.frozen:
            self.problem = shrinks(self.frozen)
            return
        if was:
            self.problem = None
        self._accept(self.policy)

    def read(self) -> Loaded:
        """Load the files without putting them into force. Raises PolicyInvalid, PolicyUnsafe."""
        return load(self.path, os.geteuid(), self._host)

    def going(self, policy: Policy, adopted: str = "") -> Going:
        """Return what `policy` would delete at once that the policy last accepted would keep.

        For a database that is `adopted` no policy may have been accepted: then all of its log counts as kept.
        """
        accepted = self._accepted()
        now = self._now()
        found: dict[str, Mapping[str, tuple[str, ...]]] = {}
        for name in policy.names():
            guarded, was = policy.guarded(name), accepted.get(name)
            new = retention.Keep.from_spec(database_spec(guarded, lambda user: 0))
            # Where no policy was accepted yet, or nothing expired until now, everything was kept.
            if was is None or (was.get("expire") == "off" and guarded.expire != "off"):
                old = retention.Keep()
            else:
                old = retention.Keep.from_spec(was)
            gone = dict(
                retention.shrinks(states_of(self._catalog.backups.of(name)), old, new, now) if old != new else {}
            )
            known = {} if name == adopted else was
            if known is not None and (begins := self._log_before(name, now - guarded.keep_log)):
                kept = math.inf if known.get("expire") == "off" else known.get("keep_log_seconds", math.inf)
                if guarded.keep_log.total_seconds() < kept:
                    gone[LOG] = (f"everything since {begins} that is older than keep_log",)
            if gone:
                found[name] = gone
        return found

    def _log_before(self, name: str, moment: datetime) -> str:
        """Return since when the log of a database is stored if that is before `moment`, else an empty text."""
        rows = coverage.read(self._catalog.settings, name)
        begins = min((row.since_at for row in rows), default="")
        return begins if begins and to_moment(begins) < moment else ""

    def terms(self, order: Order) -> JobTerms:
        """Return what the policy says about a job. Raises NotFound, PolicyInvalid (unknown run_as), PolicyShrinks."""
        state = str(self.state)
        if order.database is None or order.verb in ERRANDS:
            storage = order.storage or "local"
            key = opener(self.keyring(), storage)
            spec = {
                "database": None,
                "storage": self.policy.storage_spec(storage, state),
                "key": self.policy.key_spec(key, state),
            }
            defaults = self.policy.defaults
            return JobTerms(spec, **_times(defaults))
        if order.database not in self.policy.names() and order.verb in _OF_ORPHANS:
            return JobTerms(self._orphan(order.database, order))
        guarded = self.policy.guarded(order.database)
        if order.verb == "expire" and not order.dry:
            self._may_expire(order.database, guarded)
        return JobTerms(
            {**self.policy.spec(order.database, state), **self._elsewhere(order, guarded)},
            window_seconds=guarded.window.total_seconds(),
            verify_after=guarded.verify == "after-backup",
            expire_after=guarded.expire == "after-backup",
            **{**_times(guarded), **({"retries": 0} if order.once else {})},
        )

    def _may_expire(self, name: str, guarded: Guarded) -> None:
        """Raise PolicyShrinks, or Busy while the catalog does not know yet what could expire."""
        if name in self.frozen:
            raise shrinks({name: self.frozen[name]})
        if not self._is_read(self.policy, guarded.storage[0]):
            raise Busy(
                f"{name}: nothing expires until the catalog has read storage {guarded.storage[0]}",
                hints=["dbguardctl job list", "dbguardctl status"],
            )

    def _is_read(self, policy: Policy, storage: str) -> bool:
        """Return whether the catalog knows the content of a storage. A new catalog learns it from a scan."""
        known = self._catalog.settings.get(f"indexed:{storage}") is not None
        return known or not _may_hold(policy.storage_of(storage, str(self.state)).path)

    def _elsewhere(self, order: Order, guarded: Guarded) -> Json:
        """Return storage and key of the backup to read if the policy has named another storage since, else nothing."""
        row = self._wanted(order) if order.verb in ("restore", "verify") else None
        if row is None or row.storage == guarded.storage[0]:
            return {}
        state, key = str(self.state), opener(self.keyring(), row.storage)
        with suppress(NotFound):  # that storage left the policy, too: the job reports that there is no such backup
            return {"storage": self.policy.storage_spec(row.storage, state), "key": self.policy.key_spec(key, state)}
        return {}

    def _wanted(self, order: Order) -> BackupRow | None:
        """Return the backup that an order means, from the catalog: by its id, or the one that the job will choose."""
        name, id, at = str(order.database), str(order.request.get("backup") or ""), order.request.get("at")
        if order.verb == "verify" and not id:
            return self._catalog.backups.summary(name).newest
        rows = self._catalog.backups.of(name)
        if id:
            return next((row for row in rows if row.id.startswith(id.upper()) or row.id.endswith(id.upper())), None)
        with suppress(GuardError):  # the job reports what is wrong with `at`
            chosen = reliance.choose(states_of(rows), to_moment(str(at)) if at else None).backup
            return next((row for row in rows if chosen is not None and row.id == chosen.id), None)
        return None

    def storage(self, name: str) -> Storage:
        """Return one storage. Raises NotFound."""
        return self.policy.storage_of(name, str(self.state))

    def storages(self) -> list[str]:
        """Return the storages that a database uses, then the others in the policy, then `local` if it has a repository.

        The implicit storage `local` may hold the backups of an earlier policy, or of the machine before this one.
        """
        used = [self.policy.guarded(name).storage[0] for name in self.policy.names()]
        kept = [] if "local" in self.policy.storage or not self.holds_repository("local") else ["local"]
        return list(dict.fromkeys([*used, *self.policy.storage, *kept]))

    def holds_repository(self, storage: str) -> bool:
        """Return whether a repository is in a storage, true also if that cannot be seen. Raises NotFound."""
        return _may_hold(self.storage(storage).path)

    def keyring(self) -> dict[str, list[str]]:
        """Return the keys that a database uses or the policy names, each with the storages that it opens."""
        found: dict[str, list[str]] = {name: [] for name in self.policy.key}
        for name in self.policy.names():
            guarded = self.policy.guarded(name)
            storages = found.setdefault(guarded.key, [])
            if guarded.storage[0] not in storages:
                storages.append(guarded.storage[0])
        return found or {"main": []}

    def _take(self, loaded: Loaded) -> None:
        self._accept(loaded.policy)
        self._loaded, self.loaded_at = loaded, self._now()
        self.problem, self.frozen = None, {}

    def _orphan(self, name: str, order: Order) -> Json:
        """Return the spec of a database that only the repository knows: enough to verify and restore it.

        Raises NotFound, and Usage for what only the policy could say: where it was, and which backups to keep.
        """
        rows = self._catalog.backups.of(name)
        if not rows:
            raise no_database(name, [*self.policy.names(), *self._catalog.backups.databases()])
        if order.verb == "expire":
            raise Usage(
                f"{name}: is no longer in the policy, so there is no `keep` for its backups",
                detail="Put its table back with a smaller `keep`: the older ones expire, the newest stays.",
                hints=[f"dbguardctl list {name}", "dbguardctl config diff"],
            )
        if order.verb == "restore" and not order.request.get("to"):
            raise Usage(
                f"{name}: is no longer in the policy, so its place is not known",
                detail="Say where to restore it.",
                hints=[" ".join(["dbguardctl restore", name, *_asked(order.request), "--to PLACE"])],
            )
        guarded = Guarded.model_construct(engine=rows[0].engine, path=NOWHERE, method=rows[0].method)
        guarded._name = name
        return {
            "database": database_spec(guarded, uid_of_user),
            "storage": self.policy.storage_spec(rows[0].storage, str(self.state)),
            "key": self.policy.key_spec(opener(self.keyring(), rows[0].storage), str(self.state)),
        }

    def _accepted(self) -> Mapping[str, Json]:
        """Return what was accepted last, by database; nothing if the file is lost or damaged."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            databases = json.loads(self._accepted_file.read_bytes())["databases"]
            return {str(name): {**was, "keep": {**was["keep"]}} for name, was in dict(databases).items()}
        return {}

    @property
    def _accepted_file(self) -> Path:
        return self.state / "accepted.json"

    def _accept(self, policy: Policy) -> None:
        kept: dict[str, Json] = {}
        for name in policy.names():
            guarded = policy.guarded(name)
            if not self._is_read(policy, guarded.storage[0]):
                continue  # what was accepted before, if anything, stays accepted
            spec = database_spec(guarded, lambda user: 0)
            kept[name] = {
                key: spec[key]
                for key in ("keep", "min_proven", "timezone", "continuous", "keep_log_seconds", "thin_log")
            }
            kept[name]["expire"] = "off" if guarded.expire == "off" else "on"
        # A database that left the policy may return: until then its backups keep their protection.
        left = {
            name: was
            for name, was in self._accepted().items()
            if name in policy.names() or self._catalog.backups.summary(name).count
        }
        found = {"fingerprint": policy.fingerprint(), "databases": {**left, **kept}}
        text = json.dumps(found, indent=1, sort_keys=True) + "\n"
        with suppress(OSError, ValueError):
            if self._accepted_file.read_text() == text:
                return  # unchanged: a daemon must be able to start on a full disk
        try:
            replace_file(self._accepted_file, text.encode())
        except OSError as error:
            raise of_file(f"{self._accepted_file}: cannot be written", error) from error


def _may_hold(storage: str) -> bool:
    """Return whether a repository is in a directory; true if the directory cannot be examined."""
    try:
        return stat.S_ISREG(os.stat(f"{storage}/repo.json").st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # EACCES, EIO, ESTALE: the job that reads it reports the error
        return True


def _asked(request: Mapping[str, Any]) -> list[str]:
    """Return the options of the request: without them, the suggested command would do something else."""
    said = [f"{option} {request[name]}" for option, name in (("--id", "backup"), ("--at", "at")) if request.get(name)]
    return said + ["--dry-run"] * bool(request.get("dry_run"))


def opener(keyring: Mapping[str, list[str]], storage: str) -> str:
    """Return the name of the key that opens a storage."""
    return next((key for key, storages in keyring.items() if storage in storages), "main")


def shrinks(going: Going) -> PolicyShrinks:
    """Return the refusal of a policy that deletes backups."""
    counts = {name: len({*ids} - {LOG}) for name, ids in going.items()}
    said = [f"{n} of {name}" for name, n in counts.items() if n]
    logs = [name for name, ids in going.items() if LOG in ids]
    what = [*(["backups that exist: " + ", ".join(said)] if said else ()), *(f"log of {name}" for name in logs)]
    return PolicyShrinks(
        f"the policy would delete {', and '.join(what)}",
        detail="\n".join(
            f"{name} {id}: {', '.join(reasons)}" for name, ids in going.items() for id, reasons in ids.items()
        ),
        hints=["dbguardctl config diff", "dbguardctl config accept"],
        facts={"databases": {name: list(ids) for name, ids in going.items()}},
    )


def states_of(rows: Iterable[BackupRow]) -> list[BackupState]:
    """Return backups in the form that retention needs."""
    return [
        BackupState(
            row.id,
            to_moment(row.created_at),
            proven=row.grade is Grade.PROVEN,
            holds=tuple(row.holds),
            failed=row.failure is not None,
            failed_at=None if row.verified_at is None else to_moment(row.verified_at),
            safety=row.note == SAFETY_NOTE,
        )
        for row in rows
    ]


def _times(settings: Any) -> Json:
    """Return the time limits of a job and its retries."""
    retry = settings.retry
    return {
        "stall_seconds": settings.stall_timeout.total_seconds(),
        "limit_seconds": settings.job_timeout.total_seconds(),
        **{"retries": retry.times, "wait_seconds": retry.wait.total_seconds(), "backoff": retry.backoff},
    }
