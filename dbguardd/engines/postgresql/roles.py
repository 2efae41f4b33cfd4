"""Chooses among several servers: the hosts of a url are the servers of one cluster, whose roles may change.

libpq takes the first server that answers and has the requested role. Here all are queried, and a job does everything
with the chosen one: connections to two different servers would make no valid backup. Querying all also shows servers
that are not one cluster: of two clusters, or two that accept writes, one of which was left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.connect import Address, connected, place_of, rows, text
from dbguardd.errors import GuardError, PolicyInvalid, ServerUnreachable, SourceReplaced
from dbguardd.frozen import frozen
from dbguardd.humanize import size

ROLE = "target_session_attrs"
"""libpq's parameter for the requested role: any, primary, standby, prefer-standby, read-write, read-only."""

STANDBYS = ("any", "standby", "prefer-standby", "read-only")
"""With these the chosen server may be a standby."""

_TOGETHER = ("host", "hostaddr", "port")  # each may be a list
_ABOUT = b"""
SELECT system_identifier::text, pg_is_in_recovery(), pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
  THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_flush_lsn() END, '0/0')::int8
FROM pg_control_system()
"""
_LAG_BYTES = 16 << 20
"""A standby that is behind another server by more than this is reported as lagging."""


@frozen
class Seen:
    """A server that answered, and what it is."""

    address: Address
    about: str
    system: str
    standby: bool
    at: int  # the end of its log: what it has written, or replayed

    @property
    def role(self) -> str:
        """Its role, in one word."""
        return "standby" if self.standby else "primary"


def addresses_of(address: Address) -> list[Address]:
    """Return a separate address for each server that an address names, without the requested role.

    An address of a single server is returned as it is. Raises PolicyInvalid for lists of different
    lengths.
    """
    told = {name: address[name].split(",") for name in _TOGETHER if name in address}
    count = max((len(found) for found in told.values()), default=1)
    if count == 1:
        return [address]
    if any(len(found) not in (1, count) for found in told.values()):
        lists = ", ".join(f"{len(found)} of {name}" for name, found in told.items())
        raise PolicyInvalid(f"{place_of(address)}: the url names servers by lists that do not fit: {lists}")
    common = {name: value for name, value in address.items() if name not in (*_TOGETHER, ROLE, "load_balance_hosts")}
    # as in libpq, one port applies to all hosts, and an empty list entry means the default
    values = {name: found * count if len(found) == 1 else found for name, found in told.items()}
    return [{**common, **{name: found[n] for name, found in values.items() if found[n]}} for n in range(count)]


def choose_server(address: Address, about: str = "") -> Address:
    """Return the address of the server to use: the primary, unless another role is requested.

    Raises ServerUnreachable if none has that role, SourceReplaced if they are not one cluster.
    """
    if len(several := addresses_of(address)) == 1:
        return address
    about, role = about or place_of(address), address.get(ROLE, "primary")
    seen, lost = look_at(several)
    check_one(seen, about)
    standbys, primaries = ([one for one in seen if one.standby is standby] for standby in (True, False))
    wanted = {
        "any": seen,
        "standby": standbys,
        "read-only": standbys,
        "prefer-standby": [*standbys, *primaries],
    }.get(role, primaries)
    if not wanted:
        said = [f"{one.about}: is a {one.role}" for one in seen]
        raise ServerUnreachable(
            f"{about}: no server of the url is a {'standby' if role in STANDBYS else 'primary'} now",
            detail="; ".join([*said, *(f"{error.message}. {error.detail}" for error in lost)]),
            hints=["with target_session_attrs=prefer-standby in the url, the primary is used while there is no standby"]
            if role in STANDBYS
            else (),
        )
    return {**wanted[0].address, ROLE: "standby"} if wanted[0].standby else wanted[0].address


def primary_of(address: Address, about: str) -> Address:
    """Return the address of the primary, whatever role is requested: its log is the one to follow."""
    return choose_server({**address, ROLE: "primary"}, about) if len(addresses_of(address)) > 1 else address


def without_role(address: Address) -> Address:
    """Return an address without the requested role."""
    return {name: value for name, value in address.items() if name != ROLE}


def look_at(several: Sequence[Address]) -> tuple[list[Seen], list[GuardError]]:
    """Query each server; return those that answered, and the errors of the others."""
    seen, lost = list[Seen](), list[GuardError]()
    for address in several:
        try:
            with connected(address, about=_named(address)) as connection:
                ((system, standby, at),) = rows(connection, _ABOUT)
            seen.append(Seen(address, _named(address), text(system), bool(standby), at))
        except GuardError as error:
            lost.append(error)
    return seen, lost


def check_one(seen: Sequence[Seen], about: str) -> None:
    """Raise SourceReplaced unless the servers belong to one cluster with at most one primary."""
    if len({one.system for one in seen}) > 1:
        raise SourceReplaced(
            f"{about}: the servers in the url belong to different clusters",
            detail="; ".join(f"{one.about}: system identifier {one.system}" for one in seen),
        )
    if len(primaries := [one.about for one in seen if not one.standby]) > 1:
        raise SourceReplaced(
            f"{' and '.join(primaries)}: both accept writes, although they belong to one cluster",
            detail="One of them was left behind when another took over, and its writes are on no other server. "
            "dbguard uses neither, so that two histories are never mixed. Stop the one that should not be "
            "the primary, and rebuild it as a standby (pg_rewind, pg_basebackup).",
            hints=["SELECT timeline_id FROM pg_control_checkpoint();  -- at each: the higher one took over"],
        )


def servers(address: Address) -> Finding | None:
    """Return what the servers of a url are, and which of them lag or do not answer; None for a single server."""
    if len(several := addresses_of(address)) == 1:
        return None
    seen, lost = look_at(several)
    most = max((one.at for one in seen), default=0)
    lagging = [f"{one.about} lags by {size(most - one.at)} of log" for one in seen if most - one.at > _LAG_BYTES]
    said = ", ".join([*(f"{one.about}: {one.role}" for one in seen), *lagging, *(error.message for error in lost)])
    if lagging:
        said += (
            ". See, there: SELECT status, latest_end_lsn FROM pg_stat_wal_receiver; SELECT pg_is_wal_replay_paused()"
        )
    return Finding("servers of the url", "inconclusive" if lagging or lost else "ok", said)


def other_cluster(about: str, system: str, before: str) -> SourceReplaced:
    """Return an error: the server belongs to another cluster than the existing backups."""
    return SourceReplaced(
        f"{about}: is a different cluster than the one that was backed up",
        detail=f"Its system identifier is {system}; the stored backups have {before}.",
    )


def left_behind(about: str, timeline: int, before: int) -> SourceReplaced:
    """Return an error: the server is on an older timeline than the stored log, so another server has taken over."""
    return SourceReplaced(
        f"{about}: was left behind when another server took over, or was set back",
        detail=f"It is on timeline {timeline}, but timeline {before} is stored: its later writes are not in "
        "that history. If another server took over, stop this one and rebuild it as a standby "
        "(pg_rewind, pg_basebackup). If it was set back by hand on purpose: dbguardctl backup NAME --successor",
    )


def _named(address: Address) -> str:
    """Return a name that distinguishes a server from others of the same url."""
    return ", ".join(_parts(address))


def _parts(address: Address) -> Iterator[str]:
    yield address.get("host") or address.get("hostaddr", "")
    if "port" in address:
        yield f"port {address['port']}"
