"""Whether a server can be backed up physically, and its log be followed.

Both are tried as the configured role, with a slot that holds WAL for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.connect import Address, Connection, connected, place_of, rows, shown, text
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.cluster import Cluster, look
from dbguardd.engines.postgresql.physical.mode import BackupMode
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.slot import PREFIX, check_bound
from dbguardd.engines.postgresql.physical.stream import replicating
from dbguardd.engines.postgresql.physical.summaries import unsummarized
from dbguardd.engines.postgresql.physical.way import way_of, way_to
from dbguardd.engines.postgresql.refusals import line_of_hba
from dbguardd.engines.postgresql.roles import ROLE, STANDBYS
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.engines.postgresql.typed import in_one_line, statements
from dbguardd.errors import GuardError, SourceDenied, Unsupported
from dbguardd.frozen import frozen
from dbguardd.humanize import span

BY_PAGES = "backups by pages"
"""The name of the finding."""

FOLLOWED = "following its log"
"""The name of the finding."""

_LAG_SECONDS = 120.0  # an idle primary reports its position every 30 seconds by default
_MAY = b"""
SELECT quote_ident(rolname), rolsuper, rolreplication, rolbypassrls, pg_has_role('pg_read_all_data', 'USAGE'),
  pg_has_role('pg_monitor', 'USAGE') FROM pg_roles WHERE rolname = current_user
"""
_GRANTS = (
    *("ALTER ROLE {} REPLICATION", "ALTER ROLE {} BYPASSRLS"),
    *("GRANT pg_read_all_data TO {}", "GRANT pg_monitor TO {}"),
)
_READS = (
    "GRANT pg_read_server_files TO {}",
    "GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean), pg_ls_dir(text), "
    "pg_stat_file(text, boolean), pg_show_all_file_settings() TO {}",
    "GRANT SELECT ON pg_file_settings TO {}",
)
_FROM = b"SELECT quote_ident(current_user), inet_client_addr()::text"
_LIMITS = b"""
SELECT current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)::int,
       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication)::int,
       current_setting('synchronous_standby_names') ~ '(^|[( ,])"?[*]',
       (SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::int8
        FROM pg_replication_slots WHERE slot_name LIKE %s)
"""
_LEFT = b"SELECT slot_name FROM pg_replication_slots WHERE NOT active AND NOT temporary AND slot_name LIKE %s"


def by_pages(address: Address) -> Finding:
    """Return whether the cluster can be backed up by its pages; if not, it can be dumped."""
    try:
        return Finding(BY_PAGES, "ok", _way(address))
    except GuardError as error:
        mend = f" Fix: {error.hints[0]}" if error.hints else ""
        return Finding(BY_PAGES, "not configured", f"{error.message}. {error.detail}".strip() + mend)


@frozen
class Lack:
    """Something that prevents following the log of a cluster, and the remedy: a command, or what to do."""

    what: str
    mend: str


def lacking(address: Address) -> list[Lack]:
    """Return what prevents following the log of the cluster."""
    try:
        with connected(address) as connection:
            return [*_lacking(connection, address)]
    except GuardError as error:
        return [Lack(f"{error.message}. {error.detail}".strip(), next(iter(error.hints), ""))]


def followed(lacks: Sequence[Lack]) -> Finding:
    """Return whether the log of a cluster that lacks these things could be followed."""
    if lacks:
        said = (f"{one.what} Fix: {one.mend}" if one.mend else one.what for one in lacks)
        return Finding(FOLLOWED, "not configured", "; ".join(said))
    return Finding(FOLLOWED, "ok", "continuous = true stores what is committed within a second")


def _lacking(connection: Connection, address: Address) -> Iterator[Lack]:
    about = place_of(address)
    cluster = look(connection, about)
    ((slots, made, senders, sending, standbys, held),) = rows(connection, _LIMITS, f"{PREFIX}%")
    try:
        with way_of(connection, cluster) as way:
            room = None if way.directory is None else way.directory.free_for_log() + held
            check_bound(connection, room, None, about)
    except Unsupported as error:
        yield Lack(error.detail, error.hints[0])
    for name, most, used in (("max_replication_slots", slots, made), ("max_wal_senders", senders, sending)):
        if used >= most:
            mend = statements(connection, f"ALTER SYSTEM SET {name} = {most + 10}")
            yield Lack(f"all of {name} are in use.", f"{mend}  # then restart the server")
    if standbys:
        what = "synchronous_standby_names has *, so commits would wait for dbguard."
        yield Lack(what, "name the standbys in synchronous_standby_names")
    if sending >= senders:
        return
    try:
        _check_replicates(connection, address, about)
    except GuardError as error:
        said = error.detail or error.message
        yield Lack(f"it accepts no replication connection: {said}.", next(iter(error.hints), ""))


def left_over(address: Address) -> Finding | None:
    """Return a finding about slots of ours that keep WAL for nobody, if there are any."""
    with connected(address) as connection:
        found = [text(name) for (name,) in rows(connection, _LEFT, f"{PREFIX}%")]
    if not found:
        return None
    mend = "; ".join(f"SELECT pg_drop_replication_slot('{name}')" for name in found)
    said = (
        f"nothing reads {', '.join(found)}, but the server retains WAL for it. Unless another dbguard uses it: {mend}"
    )
    return Finding("replication slots", "inconclusive", said)


def lagging(address: Address) -> Finding | None:
    """Return how far a standby is behind; None for a primary."""
    with connected(address) as connection:
        if rows(connection, b"SELECT pg_is_in_recovery()") != [(True,)]:
            return None
        return judged((datetime.now(UTC) - replayed_at(connection)).total_seconds())


def judged(seconds: float) -> Finding:
    """Return the finding about a standby that is so many seconds behind."""
    said = f"it has all that had committed {span(seconds)} ago, and so have backups that are made of it"
    if seconds <= _LAG_SECONDS:
        return Finding("the standby", "ok", said)
    mend = (
        "SELECT status, latest_end_lsn, last_msg_send_time FROM pg_stat_wal_receiver; SELECT pg_is_wal_replay_paused()"
    )
    return Finding("the standby", "inconclusive", f"{said}, at least. See, there: {mend}")


def _way(address: Address) -> str:
    with connected(address) as connection:
        about = place_of(address)
        _check_may(connection, about)
        cluster = look(connection, about, standby=address.get(ROLE) in STANDBYS)
        slot = BackupMode(connection, cluster.log).hold()  # it disappears with the connection
        with way_to(connection, cluster, slot) as way:
            if way.directory is None:
                check_bound(connection, None, None, about)
                _check_replicates(connection, address, about, slot)
            more = _unread(connection, cluster) if way.directory is None else unsummarized(connection, cluster)
        for program in ("pg_waldump", "postgres", "pg_checksums"):
            find_tools(program, cluster.major, need="a cluster comes back by programs of its version")
        return way.said + more


def _unread(connection: Connection, cluster: Cluster) -> str:
    """Return which of the server's configuration is in no backup, and how to fix that; "" if all of it is."""
    main = cluster.configuration.get(configuration.MAIN)
    if main is None or configuration.ServerFiles(connection).read(main) is not None:
        return ""
    ((role, *_),) = rows(connection, _FROM)
    mend = statements(connection, *(grant.format(in_one_line(role)) for grant in _READS))
    return f". {main} and what it includes may not be read, and are in no backup. Fix: {mend}"


def _check_may(connection: Connection, about: str) -> None:
    """Raise SourceDenied if the role is no superuser and lacks a right that a copy sent by the server needs."""
    ((role, superuser, *rights),) = rows(connection, _MAY)
    lacks = [grant for grant, has in zip(_GRANTS, rights, strict=True) if not has]
    if not superuser and lacks:
        raise SourceDenied(
            f"{about}: the role is no superuser and may not request the files",
            detail="A physical backup asks and reads as the server's own user does, or as a role for replication that "
            "reads everything.",
            hints=[statements(connection, *(grant.format(in_one_line(role)) for grant in lacks))],
        )


def _check_replicates(connection: Connection, address: Address, about: str, slot: str = "") -> None:
    """Raise Unsupported if the server refuses a replication connection, with the pg_hba.conf line that allows it."""
    try:
        with replicating(address, about, slot):
            pass
    except SourceDenied as error:
        ((role, host),) = rows(connection, _FROM)
        raise Unsupported(
            f"{about}: it accepts no replication connection",
            detail=error.detail or error.message,
            hints=[line_of_hba("replication", shown(role), "" if host is None else text(host))],
        ) from error
