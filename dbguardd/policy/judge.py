"""Checks settings against each other: references that lead nowhere, guards without effect, goals that cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pathlib import PurePath

from dbguardd.errors import PolicyInvalid
from dbguardd.kinds import KINDS
from dbguardd.policy.addresses import named_in
from dbguardd.policy.mistakes import Mistake, Path
from dbguardd.policy.model import Database, Key, Proof, Secret, Settings, Storage
from dbguardd.policy.policy import Guarded, Policy
from dbguardd.policy.schedule import Schedule
from dbguardd.policy.units import format_duration

_ALMOST_NEVER = timedelta(days=400)


def judge(policy: Policy, state: str, uid_of: Callable[[str], int], gid_of: Callable[[str], int]) -> Iterator[Mistake]:
    """Yield every error and warning about settings that are valid by themselves; `state` is the state directory."""
    yield from _layers(policy)
    yield from _keys(policy)
    yield from _accounts(policy, uid_of, gid_of)
    yield from _kinds(policy)
    yield from _paths(policy, state)
    for name in policy.database:
        if _complete(policy, name):
            yield from _database(policy.guarded(name), partial(_where, policy, name))


def _error(code: str, message: str, *path: str | int, hint: str = "") -> Mistake:
    return Mistake("error", f"config/{code}", message, path, hint=hint)


def _warning(code: str, message: str, *path: str | int, hint: str = "") -> Mistake:
    return Mistake("warning", f"config/{code}", message, path, hint=hint)


def _layers(policy: Policy) -> Iterator[Mistake]:
    """Yield mistakes in the references of [defaults], classes and databases, each at its place."""
    layers: list[tuple[str, Path, Settings]] = [("defaults", ("defaults",), policy.defaults)]
    layers += [(f'class "{name}"', ("class", name), settings) for name, settings in policy.class_.items()]
    layers += [(f'database "{name}"', ("database", name), own) for name, own in policy.database.items()]
    storages, keys = {*policy.storage, "local"}, {*policy.key, "main"}
    for owner, path, settings in layers:
        given = settings.model_fields_set
        if "storage" in given:
            yield from _storage_list(owner, path, settings.storage, storages)
        if "key" in given and settings.key not in keys:
            yield _unknown(f"{owner}: key", "key", settings.key, keys, *path, "key")
        if "keep" in given and settings.keep.empty:
            what = f"{owner}: keep keeps no backup"
            yield _error(
                "keeps-nothing", what, *path, "keep", hint="at least one of last, daily, weekly, ... or within"
            )
        if "proof" in given:
            yield from _queries(owner, path, settings.proof)
    for name, own in policy.database.items():
        if not _complete(policy, name):
            known = set(policy.class_)
            yield _unknown(f'database "{name}": class', "class", str(own.class_), known, "database", name, "class")


def _queries(owner: str, path: Path, proof: Proof) -> Iterator[Mistake]:
    for index, query in enumerate(proof.queries):
        here = (*path, "proof", "queries", index)
        if query.min is None and query.max is None and query.equals is None:
            yield _error(
                "bad-value", f"{owner}: a proof query needs min, max or equals, otherwise nothing is compared", *here
            )
        elif query.equals is not None and (query.min is not None or query.max is not None):
            yield _error("bad-value", f"{owner}: a proof query has either equals, or min and max", *here)
        elif query.min is not None and query.max is not None and query.min > query.max:
            yield _error("bad-value", f"{owner}: min is larger than max, so no value can pass", *here)


def _storage_list(owner: str, path: Path, names: tuple[str, ...], known: set[str]) -> Iterator[Mistake]:
    if not names:
        yield _error("bad-value", f"{owner}: storage must name one storage", *path, "storage")
    if len(names) > 1:
        what = f"{owner}: storage names {len(names)} storages; this version keeps backups in exactly one"
        yield _error("not-yet", what, *path, "storage", hint="copies to further storages come in a later version")
    for index, name in enumerate(names):
        if name not in known:
            yield _unknown(f"{owner}: storage", "storage", name, known, *path, "storage", index)


def _unknown(subject: str, kind: str, name: str, known: set[str], *path: str | int) -> Mistake:
    close = get_close_matches(name, sorted(known), 1, 0.6)
    hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(sorted(known)) or 'none'}"
    return _error(f"no-such-{kind}", f"{subject} names [{kind}.{name}], which does not exist", *path, hint=hint)


def _keys(policy: Policy) -> Iterator[Mistake]:
    for name, key in policy.key.items():
        yield from _machine_key(name, key) if key.type == "machine" else _passphrase(name, key)
        if key.secret is not None:
            yield from _secret(name, key.secret)


def _machine_key(name: str, key: Key) -> Iterator[Mistake]:
    if key.path is not None and key.credential is not None:
        yield _error("bad-value", f'key "{name}" has both path and credential; it needs one', "key", name, "path")
    if key.secret is not None:
        yield _error("bad-value", f'key "{name}": secret belongs to type = "passphrase"', "key", name, "secret")


def _passphrase(name: str, key: Key) -> Iterator[Mistake]:
    if key.secret is None:
        what = f'key "{name}" needs the setting "secret": where the passphrase is'
        yield _error("missing-key", what, "key", name, "type", hint='such as secret = { credential = "NAME" }')
    for member in ("path", "credential"):
        if getattr(key, member) is not None:
            yield _error("bad-value", f'key "{name}": {member} belongs to type = "machine"', "key", name, member)


def _secret(name: str, secret: Secret) -> Iterator[Mistake]:
    if len(secret.model_dump(exclude_none=True)) != 1:
        what = f'key "{name}": secret needs exactly one of credential, file, command'
        yield _error("bad-value", what, "key", name, "secret")
    if secret.command and not secret.command[0].startswith("/"):
        what = f'key "{name}": the command must be an absolute path and its arguments'
        yield _error("bad-value", what, "key", name, "secret", "command")


def _complete(policy: Policy, database: str) -> bool:
    own = policy.database[database]
    return own.class_ is None or own.class_ in policy.class_


def _accounts(policy: Policy, uid_of: Callable[[str], int], gid_of: Callable[[str], int]) -> Iterator[Mistake]:
    for name, own in policy.database.items():
        if own.run_as is not None and (message := _refusal(uid_of, own.run_as)):
            yield _error("no-such-user", f'database "{name}": run_as: {message}', "database", name, "run_as")
    if not policy.access.admin:
        yield _warning("no-admin", "access: nobody may restore in place, hold or delete", "access", "admin")
    for role in sorted(policy.access.model_fields_set):
        for index, account in enumerate(getattr(policy.access, role)):
            group = account.removeprefix("group:")
            message = _refusal(uid_of, account) if group == account else _refusal(gid_of, group)
            if message:
                yield _warning("no-such-account", f"access: {role}: {message}", "access", role, index)


def _kinds(policy: Policy) -> Iterator[Mistake]:
    """Yield settings that a kind of database needs and lacks, or has and cannot use."""
    for name, own in policy.database.items():
        kind = KINDS[own.engine]
        if getattr(own, kind.where) is None:
            yield _error(
                "missing-key", f'database "{name}" needs the setting "{kind.where}"', "database", name, kind.where
            )
        for field in sorted(own.model_fields_set):
            others = [f'engine = "{engine}"' for engine, other in KINDS.items() if field in other.own]
            if others and field not in kind.own:
                what = f'database "{name}": {field} belongs to {" or ".join(others)}'
                yield _error("bad-value", what, "database", name, field)
        if own.method is not None and own.method not in kind.methods:
            methods = " or ".join(f'"{method}"' for method in kind.methods)
            yield _error("bad-value", f'database "{name}": method must be {methods}', "database", name, "method")
        if own.engine == "postgresql" and own.way == "pages":
            yield from _whole_clusters(name, own)
        elif own.engine == "postgresql" and "checkpoint" in own.model_fields_set:
            what = f'database "{name}": checkpoint needs method = "pages": a dump makes none'
            yield _error("bad-value", what, "database", name, "checkpoint")
        for index, query in enumerate(own.proof.queries):
            if query.database and kind.where == "path":
                what = f'database "{name}": a proof query names a database, and a file has only one'
                yield _error("bad-value", what, "database", name, "proof", "queries", index)


def _whole_clusters(name: str, own: Database) -> Iterator[Mistake]:
    """Yield mistakes of a cluster backed up by pages: it must be a whole cluster, on this host or elsewhere."""
    if own.exclude:
        what = f'database "{name}": exclude needs method = "dump": pages are of the whole cluster'
        yield _error("bad-value", what, "database", name, "exclude")
    if own.url is not None and named_in(own.url):
        what = f'database "{name}": method = "pages" is of a whole cluster: url must not name one of its databases'
        yield _error("bad-value", what, "database", name, "method")


def _refusal(look_up: Callable[[str], int], name: str) -> str:
    try:
        look_up(name)
    except PolicyInvalid as error:
        return error.message
    return ""


def _paths(policy: Policy, state: str) -> Iterator[Mistake]:
    by_place: dict[str, str] = {}
    used = (
        name for database in policy.database if _complete(policy, database) for name in policy.guarded(database).storage
    )
    names = dict.fromkeys((*policy.storage, *used))
    storages = {name: policy.storage_of(name, state) for name in names if name in policy.storage or name == "local"}
    for name, own in policy.database.items():
        if own.source in by_place:
            what = f'database "{name}" and database "{by_place[own.source]}" are the same {_thing(own)}'
            hint = "one database, one table"
            yield _error("same-path", what, "database", name, KINDS[own.engine].where, hint=hint)
        if own.source:
            by_place.setdefault(own.source, name)
        if own.path is None:
            continue
        here = ("database", name, "path")
        inside = [store for store in storages.values() if _inside(own.path, store.path)]
        if _inside(own.path, state) and not inside:
            what = f'database "{name}" lies in the state directory of dbguard ({state})'
            yield _error("path-in-state", what, *here, hint="a lost catalog is read from the backups again")
        for storage_name, storage in storages.items():
            if _inside(own.path, storage.path):
                what = f'database "{name}" lies in storage "{storage_name}" ({storage.path})'
                yield _error("path-in-storage", what, *here, hint="a repository holds nothing but its own objects")
            elif _inside(storage.path, own.path):
                what = f'storage "{storage_name}" would lie in database "{name}" ({own.path})'
                yield _error("storage-in-path", what, "storage", storage_name, "path")
        plain = own.keep_plain
        if plain is not None:
            yield from _plain_path(name, plain.path, own.path, storages)
    yield from _beside_state(storages, state)
    yield from _storages(storages)


def _beside_state(storages: dict[str, Storage], state: str) -> Iterator[Mistake]:
    """Yield storages that are or contain the state directory, or are where any user may write."""
    for name, storage in storages.items():
        what = ""
        if _inside(state, storage.path):
            what = f'storage "{name}" would hold the state directory of dbguard ({state})'
        elif _inside(storage.path, f"{state}/staging"):
            what = f'storage "{name}" lies in {state}/staging, where every user may write'
        if what:
            hint = "a repository holds nothing but its own objects"
            yield _error("path-in-state", what, "storage", name, "path", hint=hint)


def _thing(own: Database) -> str:
    return "file" if KINDS[own.engine].where == "path" else "server"


def _plain_path(name: str, plain: str, path: str, storages: dict[str, Storage]) -> Iterator[Mistake]:
    here = ("database", name, "keep_plain", "path")
    if _inside(plain, path):
        yield _error("bad-value", f'database "{name}": keep_plain must be a directory beside the database', *here)
    for storage_name, storage in storages.items():
        if _inside(plain, storage.path):
            what = f'database "{name}": keep_plain lies in storage "{storage_name}" ({storage.path})'
            yield _error("path-in-storage", what, *here, hint="a repository holds nothing but its own objects")


def _storages(storages: dict[str, Storage]) -> Iterator[Mistake]:
    names = list(storages)
    for index, name in enumerate(names):
        for other in names[:index]:
            inner, outer = storages[name].path, storages[other].path
            if _inside(inner, outer) or _inside(outer, inner):
                what = f'storage "{name}" and storage "{other}" are inside one another or are the same directory'
                yield _error("same-path", what, "storage", name if name != "local" else other, "path")


def _inside(path: str, directory: str) -> bool:
    return PurePath(path).is_relative_to(directory)


def _where(policy: Policy, name: str, key: str) -> Path:
    """Return where the setting in force for a database is written: its own table, its class, or [defaults]."""
    own = policy.database[name]
    layers: list[tuple[Path, Settings]] = [(("database", name), own)]
    if own.class_ is not None:
        layers.append((("class", own.class_), policy.class_[own.class_]))
    layers.append((("defaults",), policy.defaults))
    return next(((*path, key) for path, layer in layers if key in layer.model_fields_set), ("database", name))


def _database(guarded: Guarded, where: Callable[[str], Path]) -> Iterator[Mistake]:
    name, keep = guarded.name, guarded.keep
    gaps = guarded.backup.gaps()
    rpo = guarded.objective.rpo
    if gaps is None or gaps[1] > _ALMOST_NEVER:
        what = f'database "{name}": backup = "{guarded.backup.text}" runs less than once a year'
        yield _warning("rare", what, *where("backup"))
    elif rpo is not None and rpo < gaps[1] and not guarded.continuous:
        what = (
            f'database "{name}": rpo {format_duration(rpo)} cannot be met: '
            f'backup = "{guarded.backup.text}" leaves {format_duration(gaps[1])} between two backups'
        )
        yield _warning("rpo", what, *where("objective"), hint="back up more often, or raise rpo")
    yield from _log(guarded, where)
    if guarded.verify == "off":
        what = f'database "{name}": verify = "off": no backup will ever be proven'
        if guarded.proof.queries:
            what += ", and its proof queries are never asked"
        yield _warning("never-proven", what, *where("verify"))
    verify = guarded.verify
    if (
        isinstance(verify, Schedule)
        and rpo is not None
        and not guarded.continuous
        and (proofs := verify.gaps())
        and rpo < proofs[1]
    ):
        what = f'database "{name}": rpo {format_duration(rpo)} cannot be met: a backup is proven only "{verify.text}"'
        yield _warning("rpo", what, *where("verify"), hint='verify = "after-backup" proves each one')
    if keep.last == 0 and keep.hourly == 0 and keep.daily == 0 and not keep.empty and keep.within is None:
        what = f'database "{name}": keep asks for nothing recent (no last, hourly, daily or within)'
        yield _warning("keeps-little", what, *where("keep"), hint="most mistakes are noticed within days")


def _log(guarded: Guarded, where: Callable[[str], Path]) -> Iterator[Mistake]:
    """Yield mistakes in the settings of a log."""
    name, kind, keep_log = guarded.name, KINDS[guarded.engine], guarded.keep_log
    if guarded.continuous and guarded.way not in kind.followed:
        what = f'database "{name}": continuous needs method = "pages": a log goes on from the pages of a backup'
        yield _error("bad-value", what, *where("continuous"))
    if guarded.continuous == "archive" and not kind.archived:
        what = f'database "{name}": continuous: {kind.title} has no archiver, and is followed with continuous = true'
        yield _error("bad-value", what, *where("continuous"))
    if guarded.continuous and guarded.thin_log.grains and not kind.thinned:
        what = f'database "{name}": thin_log: the log of {kind.title} has every moment or none'
        yield _error("bad-value", what, *where("thin_log"))
    before, least = "", timedelta()
    for unit, length, age in guarded.thin_log.grains:
        said = f'database "{name}": thin_log: {unit} = "{format_duration(age)}"'
        if age <= least:
            yield _error("bad-value", f"{said}: must be longer than {before}", *where("thin_log"))
        elif age < length:
            yield _error("bad-value", f"{said}: must be one {unit} at least", *where("thin_log"))
        elif age >= keep_log:
            what = f'{said}: is never reached, because of keep_log = "{format_duration(keep_log)}"'
            yield _error("bad-value", what, *where("thin_log"), hint="keep_log says how long all of it stays")
        before, least = f'{unit} = "{format_duration(age)}"', age
