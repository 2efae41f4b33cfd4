"""Restores a cluster to a new directory: all or nothing, durable, and unable to affect the original.

The directory appears under its name once all of it is on disk. Tablespaces are placed inside it, so that no recovery
can reach those of the original. The cluster is written as it is in the backup, and recovers to the place that the
backup names, with the log that it contains.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.fresh import together
from dbguardd.engines.postgresql.physical.configuration import DIRECTORY, options
from dbguardd.engines.postgresql.physical.copy import ARCHIVE, FILES, LOG
from dbguardd.engines.postgresql.physical.datadir import CONTROL, TABLESPACES, database_of, is_relation
from dbguardd.engines.postgresql.physical.elsewhere import lead, led_elsewhere, sweep, where_to
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.roll_forward import log_tools, roll_forward
from dbguardd.engines.postgresql.physical.segments import format_lsn
from dbguardd.engines.postgresql.physical.tarred import clear, unpack
from dbguardd.engines.postgresql.typed import as_owner
from dbguardd.errors import Damaged
from dbguardd.flow import Tree
from dbguardd.frozen import frozen

AUTO = "postgresql.auto.conf"
MANUAL = "RESTORE.txt"

_SPACES = "tablespaces"

_BESIDE = "-c port=5433 -c listen_addresses= -c archive_mode=off -c max_logical_replication_workers=0"
"""It must not archive into the original's archive, nor consume the replicated rows meant for the original."""

_PREPARED = (
    "# Transactions that were prepared for a commit in two phases come back, and hold their locks until somebody ends",
    "# them. This lists them; end each in its database (COMMIT PREPARED instead, if the others have committed):",
    "psql -X -p 5433 -d postgres -c 'SELECT gid, database, owner, prepared FROM pg_prepared_xacts'",
    "psql -X -p 5433 -d DATABASE -c \"ROLLBACK PREPARED 'GID'\"",
)

_BEGIN = "# dbguard: where the recovery of this restore ends; of no use when it has ended\n"
_END = "# dbguard: end\n"


@frozen
class Restored:
    """A cluster that was restored but not recovered yet, for its proof."""

    facts: ClusterFacts
    elsewhere: tuple[str, ...]  # its directories outside the data directory
    live: str = ""  # the cluster that it will replace


def rebuild(tree: Tree, target: Path, places: Mapping[str, str], progress: Progress) -> tuple[list[str], Restored]:
    """Write the cluster of a backup, or of a moment after it, to `target`, which must not exist.

    The `places` of its tablespaces must not exist either. Return which rights could not be restored, and what the proof
    needs.
    """
    spaces = where_to(ClusterFacts.read(tree.facts), places)
    with together([target, *spaces.values()]) as (work, *others):
        restored = fill(tree, work, target, progress, spaces=dict(zip(spaces, others, strict=True)))
        for number, place in spaces.items():
            lead(work, number, place)
    return _lost(restored.facts), replace(restored, elsewhere=tuple(map(str, spaces.values())))


def fill(
    tree: Tree,
    work: Path,
    target: Path,
    progress: Progress,
    *,
    spaces: Mapping[str, Path] = MappingProxyType({}),
    over: bool = False,
) -> Restored:
    """Write a cluster to the directory `work`, from which it will be started as `target`. Not durable.

    Its tablespaces lie inside, except for those in `spaces`. With `over`, `work` contains another state of the same
    cluster, and only differences are written.
    """
    done, facts = 0, ClusterFacts.read(tree.facts)
    moment, total = facts.moment, facts.restored_bytes
    if moment is not None:
        log_tools(facts)  # before anything is read

    def tell(size: int) -> None:
        nonlocal done
        done += size
        progress("restore", min(done, total), total)

    tell(0)
    names = [name for name in tree.names() if moment is None or name != moment.stream]
    relations = [name for name in names if not name.endswith(ARCHIVE)]
    small = [name for name in names if name.endswith(ARCHIVE) and name not in (FILES, LOG)]
    if not {FILES, LOG} <= {*names}:
        raise Damaged("the backup lacks the archive of its small files or of its log", detail=", ".join(names[:5]))
    links = led_elsewhere(work, facts, spaces)
    kept = {CONTROL, *relations, *links}

    def unpacked(name: str) -> None:
        with tree.read(name) as source:
            for path, size in unpack(source, work, links=links, over=over):
                kept.add(path)
                tell(size)

    unpacked(FILES)
    for name in small:
        _database(work, name.removesuffix(ARCHIVE), over=over)
        unpacked(name)
    if over:  # makes room for what has grown
        sweep(work, kept, links, lambda: tell(0))
    for name in relations:
        tell(_relation(tree, name, work, over=over))
    unpacked(LOG)
    if moment is not None:
        facts = roll_forward(tree, facts, moment, work, tell)
    _finish(work, target, facts, spaces)
    return Restored(facts, tuple(os.path.realpath(work / link) for link in links))


def _database(work: Path, database: str, *, over: bool) -> None:
    """Make the directory of a database: if it was dropped during the backup, no other archive may have that."""
    if database_of(f"{database}/PG_VERSION") != database:
        raise Damaged(f"{database!r}: this archive of a backup is not of a database")
    if over:
        clear(work / database, directory=True)
    (work / database).mkdir(mode=0o700, parents=True, exist_ok=True)


def _relation(tree: Tree, name: str, work: Path, *, over: bool) -> int:
    if not is_relation(name):
        raise Damaged(f"{name!r}: this stream of a backup is not a relation")
    (work / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # of a database dropped during the backup
    if over:
        clear(work / name, directory=False)
    anew = 0 if over else os.O_EXCL
    file = os.open(work / name, os.O_RDWR | os.O_CREAT | anew | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        return tree.deliver(name, file, delta=over)
    finally:
        os.close(file)


def _finish(work: Path, target: Path, facts: ClusterFacts, placed: Collection[str]) -> None:
    """Configure the cluster to recover to the place of the backup, and nowhere else, when it is started.

    Tablespaces get places below `target`, with links to them, since a server requires links; those in `placed` already
    have theirs. The tablespace_map is deleted: with it the server would replace the links by links to the original's
    places.
    """
    label = () if facts.resting else ("backup_label",)
    for name in ("PG_VERSION", CONTROL, *label):
        if not (work / name).is_file():
            raise Damaged(f"{name}: is not in the backup: without it, a server would start with a mixture of states")
    for number in facts.tablespaces:
        link, place = work / TABLESPACES / number, work / _SPACES / number
        if number in placed:
            continue
        if not link.is_dir() or link.is_symlink():
            raise Damaged(f"tablespace {number!r}: is not in the backup")
        place.parent.mkdir(mode=0o700, exist_ok=True)
        link.rename(place)
        link.symlink_to(target / _SPACES / number)
    (work / "tablespace_map").unlink(missing_ok=True)
    bare = not (work / DIRECTORY).is_dir() and not (work / "postgresql.conf").exists()
    text = manual(target, facts, options(work, target), placed, bare=bare)
    (work / MANUAL).write_text(text, encoding="utf-8", errors="backslashreplace")
    if facts.resting:
        return
    (work / "recovery.signal").touch(mode=0o600)
    lines = "".join(f"{name} = '{value}'\n" for name, value in recovery_settings(facts).items())
    with (work / AUTO).open("a", encoding="utf-8") as settings:
        settings.write(f"{_BEGIN}{lines}{_END}")


def manual(
    target: Path, facts: ClusterFacts, settings: str, placed: Collection[str] = (), *, bare: bool = False
) -> str:
    """Return the text in the restored directory: how to start a server on it, in commands that can be pasted.

    `bare`: no configuration could be read, so the backup contains none.
    """
    major, place = facts.major, shlex.quote(str(target))
    beside = " ".join(filter(None, (settings, _BESIDE)))
    control = f"/usr/lib/postgresql/{major}/bin/pg_ctl -D {place}"
    lines = [
        f"# A PostgreSQL {facts.server_version} cluster, as it was at {facts.snapshot_at}.",
        f"# Where PostgreSQL {major} is installed, the restore has recovered it to that moment and shut it down. If",
        "# it is not installed, or the restore was interrupted, the first start recovers it.",
        "# Run these commands as the owner of this directory; as root, first: su - postgres",
        "# If psql does not find the right server by itself, first: export PGHOST=... PGPORT=...",
        *(_configured(place) if bare else ()),
        "# Start it beside the running server:",
        f"{control} -o {shlex.quote(beside)} -l {place}.log -w start",
        "# (Libraries in shared_preload_libraries, such as pg_cron, run there too. To prevent that, add this to the",
        "# options above: -c shared_preload_libraries=)",
        *(_PREPARED if facts.prepared else ()),
        "# Copy a lost table to the running server, with its privileges and indexes:",
        "pg_dump -p 5433 -t SCHEMA.TABLE DATABASE | psql -X -1 -v ON_ERROR_STOP=1 DATABASE",
        "# Stop it again:",
        f"{control} -m fast stop",
        *_in_its_place(target, facts, placed),
    ]
    if settings:
        lines.append(f"# Its configuration files were in another directory. {DIRECTORY}, beside this text, has copies.")
    return "\n".join([*lines, ""])


def _configured(place: str) -> list[str]:
    return [
        "# Its configuration files were in another directory and could not be read, so the backup lacks them. No",
        "# server starts without them. With these, the owner of the directory can log in as the role of the same name:",
        f"touch {place}/postgresql.conf {place}/pg_ident.conf",
        f"echo 'local all all peer' > {place}/pg_hba.conf",
    ]


def _in_its_place(target: Path, facts: ClusterFacts, placed: Collection[str]) -> list[str]:
    """Return how this directory replaces the original, which is kept beside it."""
    original, service = facts.directory, facts.service
    if not original:
        return ["# To replace the original: stop its server, and move this directory to the original's place."]
    new, old = shlex.quote(original), shlex.quote(f"{original}.before")
    lines = [
        "# To replace the original, which is kept under another name (as root).",
        f"# It continues on timeline {facts.timeline + 1}: set up its standbys again. If its WAL archive already has",
        "# files of that timeline, from an earlier restore, first move them away:",
        f"systemctl stop {shlex.quote(service)}" if service else "# Stop the server.",
    ]
    steps = [  # one chain: if a step fails, none after it may run
        f"if test -e {old}; then echo {old}: already exists, rename it first; false; fi",
        f"if test -e {new}; then mv -T {new} {old}; fi",
        f"mv -T {shlex.quote(str(target))} {new}",
    ]
    for number in sorted({*facts.tablespaces}.difference(placed)):
        steps.append(f"ln -sfnT {new}/{_SPACES}/{number} {new}/{TABLESPACES}/{number}")
    steps += [f"systemctl start {shlex.quote(service)}"] if service else []
    return [*lines, *(f"{step} &&" for step in steps[:-1]), steps[-1], *([] if service else ["# Start the server."])]


def starting(target: Path, restored: Restored) -> str:
    """Return how to start the server of a cluster that is restored in place; it is still at `target`."""
    live, service = restored.live, restored.facts.service
    settings = options(target, Path(live))  # only if nothing was there: else its own configuration is
    if service:
        said = f"systemctl start {shlex.quote(service)}"
    elif settings or (target / "postgresql.conf").exists():
        control = ["-D", live, *(["-o", settings] if settings else []), "-l", f"{live}.log", "-w", "start"]
        program = f"/usr/lib/postgresql/{restored.facts.major}/bin/pg_ctl"
        said = f"start its server, for example with: {shlex.join(as_owner(program, *control))}"
    else:
        said = "start its server as before: its configuration files are in another directory, and stay as they are"
    if settings:
        said += f"  # copies of its configuration files, which were in another directory: {Path(live) / DIRECTORY}"
    return said


def without_recovery(settings: bytes) -> bytes:
    """Return the content of postgresql.auto.conf without the lines that a restore has added."""
    start, end = settings.find(_BEGIN.encode()), settings.find(_END.encode())
    return settings if start < 0 or end < start else settings[:start] + settings[end + len(_END) :]


def recovery_settings(facts: ClusterFacts) -> dict[str, str]:
    """Return the settings that make recovery end at the right place, and not earlier.

    For a backup that is before the next record; for a moment, after the record at that place.
    """
    return {
        "restore_command": "/bin/false",  # all WAL that is needed is already there
        "recovery_target_lsn": format_lsn(facts.recovery_lsn),
        "recovery_target_inclusive": "off" if facts.recovery_record_bytes is None else "on",
        "recovery_target_timeline": str(facts.timeline),
        "recovery_target_action": "promote",
    }


def _lost(facts: ClusterFacts) -> list[str]:
    owner, here = facts.owner, pwd.getpwuid(os.geteuid()).pw_name
    return [f"owner {owner}: it belongs to {here}, who restored it"] if owner and owner != here else []
