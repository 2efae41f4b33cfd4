"""A whole policy, and the settings of one database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StrictStr

from dbguardd.errors import NotFound, no_database
from dbguardd.kinds import KINDS
from dbguardd.policy.accounts import uid_of_user
from dbguardd.policy.model import NAME, Access, Daemon, Database, Key, Settings, Storage, Table

TableName = Annotated[StrictStr, Field(pattern=NAME)]
Json = dict[str, Any]


class Guarded(Database):
    """One database with all settings that apply to it, including those of its class and [defaults]."""

    _name: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """The NAME in [database.NAME]."""
        return self._name


class Policy(Table):
    """What dbguardd protects, how often, where, for how long."""

    version: Literal[1]
    """the version of this language: 1"""
    defaults: Settings = Settings()
    """what every database inherits"""
    class_: dict[TableName, Settings] = Field(default={}, alias="class")
    """reusable settings, chosen with `class`"""
    database: dict[TableName, Database] = {}
    """what to protect"""
    storage: dict[TableName, Storage] = {}
    """where backups go; "local" is a directory in the state directory unless it is given here"""
    key: dict[TableName, Key] = {}
    """who can open them; "main" is a machine key in the state directory unless it is given here"""
    access: Access = Access()
    """who may ask what"""
    daemon: Daemon = Daemon()
    """the daemon itself"""
    _guarded: dict[str, Guarded] = PrivateAttr(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names of the databases in the order of the files."""
        return list(self.database)

    def guarded(self, name: str) -> Guarded:
        """Return one database with all its settings: its own, else its class's, else those of [defaults].

        Raises NotFound.
        """
        if name in self._guarded:  # cached: each status asks for every database several times
            return self._guarded[name]
        try:
            own = self.database[name]
        except KeyError:
            raise no_database(name, self.database) from None
        layers = [self.defaults, *([self.class_[own.class_]] if own.class_ in self.class_ else []), own]
        values: Json = {}
        for layer in layers:
            values.update({field: getattr(layer, field) for field in layer.model_fields_set})
        guarded = Guarded.model_construct(**values)
        guarded._name = name
        self._guarded[name] = guarded
        return guarded

    def with_only(self, name: str, own: Database) -> Policy:
        """Return this policy with one database instead of all."""
        policy = self.model_copy(update={"database": {name: own}})
        policy._guarded = {}  # model_copy copied the cache, too
        return policy

    def storage_of(self, name: str, state: str) -> Storage:
        """Return a storage of the policy, or the implicit one "local". Raises NotFound."""
        if name in self.storage:
            return self.storage[name]
        if name == "local":
            return Storage(type="directory", path=f"{state.rstrip('/')}/store")
        known = ", ".join(dict.fromkeys(["local", *self.storage]))
        raise NotFound(f"{name}: no such storage in the policy", detail=f"Storages: {known}.")

    def key_of(self, name: str, state: str) -> Key:
        """Return a key of the policy with its path filled in, or the implicit one "main". Raises NotFound."""
        key = self.key.get(name)
        if key is None:
            if name != "main":
                raise NotFound(f"{name}: no such key in the policy")
            key = Key(type="machine")
        if key.type == "machine" and key.path is None and key.credential is None:
            return key.model_copy(update={"path": f"{state.rstrip('/')}/machine.key"})
        return key

    def spec(self, name: str, state: str) -> Json:
        """Return the members `database`, `storage` and `key` of a job's spec: plain JSON, with units in the names.

        Raises NotFound, PolicyInvalid (run_as names no user).
        """
        guarded = self.guarded(name)
        return {
            "database": database_spec(guarded, uid_of_user),
            "storage": self.storage_spec(guarded.storage[0], state),
            "key": self.key_spec(guarded.key, state),
        }

    def storage_spec(self, name: str, state: str) -> Json:
        """Return the member `storage` of a job's spec. Raises NotFound."""
        storage = self.storage_of(name, state)
        return {
            "name": name,
            "type": storage.type,
            "path": storage.path,
            "keep_free": storage.keep_free,
            "max_bytes": storage.max_size,
            "grace_seconds": storage.grace.total_seconds(),
        }

    def key_spec(self, name: str, state: str) -> Json:
        """Return the member `key` of a job's spec: names of secrets, never secrets. Raises NotFound."""
        key = self.key_of(name, state)
        where = {
            member: value
            for member, value in (("path", key.path), ("credential", key.credential))
            if value is not None and key.type == "machine"
        }
        if key.secret is not None:
            where["secret"] = key.secret.model_dump(mode="json", exclude_none=True)  # type: ignore[assignment]
        return {"name": name, "type": key.type, **where, "recovery": list(key.recovery)}

    def fingerprint(self) -> str:
        """Return 64 hex digits that are equal exactly if two policies are equal."""
        said = self.model_dump(mode="json", exclude_unset=True)
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def database_spec(guarded: Guarded, uid_of: Callable[[str], int]) -> Json:
    """Return the member `database` of a job's spec."""
    keep, plain, every = guarded.keep, guarded.keep_plain, guarded.fingerprint_every
    return {
        "name": guarded.name,
        "engine": guarded.engine,
        "settings": _engine_settings(guarded),
        "place": guarded.place,
        "compress_level": guarded.compress_level,
        "keep": {
            **{unit: getattr(keep, unit) for unit in ("last", "hourly", "daily", "weekly", "monthly", "yearly")},
            "within_seconds": None if keep.within is None else keep.within.total_seconds(),
        },
        "min_proven": guarded.min_proven,
        "continuous": guarded.continuous,
        "keep_log_seconds": guarded.keep_log.total_seconds(),
        "thin_log": [[int(one.total_seconds()), age.total_seconds()] for _, one, age in guarded.thin_log.grains],
        "timezone": str(guarded.timezone),
        "queries": [query.model_dump() for query in guarded.proof.queries],
        "fingerprint_every_seconds": None if every is None else every.total_seconds(),
        "keep_plain": {"count": plain.count if plain else 0, "path": plain.path if plain else ""},
        "verify_after": guarded.verify == "after-backup",
        "run_as": None if guarded.run_as is None else uid_of(guarded.run_as),
    }


def _engine_settings(guarded: Guarded) -> Json:
    """Return the settings for the engine: those that every kind of database has, and its own."""
    told: Json = {"method": guarded.way}
    for setting in (*KINDS[guarded.engine].engine, "lock_timeout", "continuous"):
        value = getattr(guarded, setting)
        if isinstance(value, timedelta):
            told[f"{setting}_seconds"] = value.total_seconds()
        else:
            told[setting] = list(value) if isinstance(value, tuple) else value
    return told
