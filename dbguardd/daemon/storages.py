"""The status of storages and keys, from the last measurement of their paths and the catalog."""

from __future__ import annotations

import os
import shlex

from dbguardd.catalog import Catalog
from dbguardd.catalog.effects import recovery
from dbguardd.daemon.inforce import PolicyInForce, opener
from dbguardd.daemon.paths import Paths
from dbguardd.errors import (
    Busy,
    GuardError,
    KeyMissing,
    KeyRefused,
    NoSpace,
    NotARepository,
    NotFound,
    PolicyInvalid,
    Unreachable,
    from_problem,
)
from dbguardd.frozen import frozen
from dbguardd.wire import KeyStatus, RecipientStatus, StorageStatus


@frozen
class Storages:
    """Where backups are, and which keys open them."""

    catalog: Catalog
    inforce: PolicyInForce
    paths: Paths

    def storage(self, name: str) -> StorageStatus:
        """Return the status of one storage, as last measured."""
        storage = self.inforce.storage(name)
        level = self.paths.level(storage.path)
        keep_free = storage.keep_free
        if isinstance(keep_free, str):
            share = float(keep_free.rstrip("%")) / 100
            floor = None if level.total_bytes is None else int(level.total_bytes * share)
        else:
            floor = int(keep_free)
        problem = self.lost(name) or self._shared(name)
        if problem is None and floor is not None and level.free_bytes is not None and level.free_bytes <= floor:
            problem = NoSpace(
                f"storage {name} is full",
                detail=f"{level.free_bytes} bytes are free, the policy keeps {floor} bytes free.",
                hints=[f"df -h {shlex.quote(storage.path)}", *self._ways_to_room(name)],
            )
        return StorageStatus(
            name=name,
            url=storage.path,
            ok=problem is None,
            free_bytes=level.free_bytes,
            total_bytes=level.total_bytes,
            keep_free_bytes=floor,
            stored_bytes=None if self.is_unread(name) else self.catalog.backups.stored_bytes(name),
            problem=None if problem is None else problem.problem(),
            beside=[one for one in self._kept_in(name) if level.device in self._devices(one)],
        )

    def _shared(self, name: str) -> GuardError | None:
        """Return an error if another storage of the policy is the same directory by another name, or nested with it."""
        own = self.paths.level(self.inforce.storage(name).path).lies_in
        for other in self.inforce.storages():
            there = self.paths.level(self.inforce.storage(other).path).lies_in
            if other != name and own and there and (own[0] in there or there[0] in own):
                how = "are the same directory" if own[0] == there[0] else "are inside one another"
                return PolicyInvalid(
                    f"storages {name} and {other} {how}, through a link or a mount",
                    detail="A failure there loses both, and each deletes by its own rules what both hold.",
                    hints=[f"realpath {shlex.quote(self.inforce.storage(one).path)}" for one in (name, other)],
                )
        return None

    def _ways_to_room(self, name: str) -> list[str]:
        """Return commands that free space in a storage: a prune only if an expired backup is not deleted yet."""
        expired = any(map(self.catalog.backups.expired, self.catalog.backups.databases()))
        return ["dbguardctl prune --dry-run"] if expired else [f"dbguardctl config explain storage.{name}.keep_free"]

    def keys(self) -> list[KeyStatus]:
        """Return every key, and the recipients that could open the backups without this machine."""
        found = []
        for name, storages in self.inforce.keyring().items():
            key = self.inforce.policy.key_of(name, str(self.inforce.state))
            known = dict.fromkeys((*key.recovery, *recovery(self.catalog.settings, name)))
            if key.type == "passphrase":
                known["passphrase"] = None
            get = self.catalog.settings.get
            each = [RecipientStatus(one, get(f"recovery_tested:{name}:{one}")) for one in known if one != "passphrase"]
            read = not any(map(self.is_unread, storages or self.inforce.storages()))
            found.append(KeyStatus(name, key.type, list(known), get(f"recovery_tested:{name}"), each, read))
        return found

    def places(self) -> list[str]:
        """Return every path that backups and restores depend on."""
        inforce = self.inforce
        stores = [inforce.storage(name).path for name in inforce.storages()]
        names = inforce.policy.names()
        databases = [inforce.policy.guarded(name).place for name in names]
        return [
            str(inforce.state),
            *stores,
            *filter(None, (*databases, *map(self._lies_in, names))),
            *filter(None, map(self._key_file, inforce.keyring())),
        ]

    def lost(self, name: str) -> GuardError | None:
        """Return why nothing could be restored from a storage now, as far as is known without reading backups."""
        seen = self.catalog.settings.get(f"repository:{name}")
        try:
            storage, key = self.inforce.storage(name), opener(self.inforce.keyring(), name)
        except NotFound as unknown:
            return self._unread(name) if seen is None else _taken_out(name, unknown)
        level = self.paths.level(storage.path)
        if seen is None and (level.missing or not level.error):
            return self._unread(name)
        if level.error:
            return Unreachable(f"storage {name} cannot be read", detail=level.error)
        if level.repository not in (None, seen):
            other = "a different repository than before" if level.repository else "no repository now"
            return NotARepository(f"storage {name} holds {other}", detail=f"{storage.path}: {seen} should be there.")
        if error := self.paths.level(self._key_file(key)).error:
            return KeyMissing(f"key {key} is gone", detail=error, hints=[f"dbguardctl key recover {key}"])
        return self._unread(name)

    def check_read(self, name: str) -> None:
        """Raise an error if the content of a storage is not known yet."""
        if self.catalog.settings.get(f"indexed:{name}") is None and self.inforce.holds_repository(name):
            raise self.lost(name) or Busy(
                f"storage {name}: its backups have not been read yet, so it is not known which databases they are of",
                hints=["dbguardctl status", "dbguardctl job list"],
            )

    def _unread(self, name: str) -> GuardError | None:
        """Return why the repository could not be read into the catalog; None if it was read, or if there is none."""
        scan = self.catalog.runs.get(f"storage:{name}", "scan")
        if scan is None or scan.problem is None:
            return None
        error = from_problem(scan.problem)
        if isinstance(error, KeyMissing | KeyRefused):
            error.hints = (f"dbguardctl key recover {opener(self.inforce.keyring(), name)}",)
            error.message = f"no key of this machine opens the backups: {error.message}"
        return error

    def is_unread(self, name: str) -> bool:
        """Return whether a storage has a repository, or may have one, that the catalog has not read."""
        level = self.paths.level(self.inforce.storage(name).path)
        may_hold = level.repository or (level.error and not level.missing)
        return bool(may_hold) and self.catalog.settings.get(f"indexed:{name}") is None

    def is_there(self, name: str) -> bool:
        """Return whether the last measurement saw a repository in a storage, without an error."""
        level = self.paths.level(self.inforce.storage(name).path)
        return bool(level.repository) and not level.error

    def _kept_in(self, storage: str) -> list[str]:
        policy = self.inforce.policy
        return [name for name in policy.names() if policy.guarded(name).storage[0] == storage]

    def _devices(self, database: str) -> set[int]:
        device = self.paths.level(self._lies_in(database)).device
        return set() if device is None else {device}

    def _lies_in(self, database: str) -> str:
        """Return where the bytes of a database are: its file, or its server's data directory as of the last backup."""
        guarded = self.inforce.policy.guarded(database)
        if guarded.url is None:
            return guarded.place or ""
        return self.catalog.settings.get(f"directory:{database}") or ""

    def _key_file(self, name: str) -> str:
        """Return the path of a key; empty if only a command provides it."""
        key = self.inforce.policy.key_of(name, str(self.inforce.state))
        if credential := key.credential or (key.secret and key.secret.credential):
            return f"{os.environ.get('CREDENTIALS_DIRECTORY', '')}/{credential}"
        return key.path or (key.secret and key.secret.file) or ""


def _taken_out(name: str, unknown: NotFound) -> NotFound:
    """Return the error for a storage that is no longer in the policy: what that means for its backups."""
    return NotFound(
        f"storage {name}, which holds the newest backup, is no longer in the policy",
        detail=f"{unknown.detail} Nothing in it was touched. Put [storage.{name}] back into the policy as it was, "
        "and its backups can be restored.",
        hints=[
            "dbguardctl reload  # once that table is back",
            "dbguardctl backup --all  # or start in another storage",
        ],
    )
