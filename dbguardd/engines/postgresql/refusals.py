"""Translates the refusals of a server into our errors, with what a person can do about each."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from dbguardd.errors import (
    GuardError,
    PolicyInvalid,
    ServerUnreachable,
    SourceChanged,
    SourceDamaged,
    SourceDenied,
    SourceInvalid,
    SourceLocked,
    SourceMissing,
)

_FROM = re.compile(r"""["»„“]([0-9a-f.]*[.:][0-9a-f.:]*)["«“”]""")

_STATES: Mapping[str, type[GuardError]] = {
    "08": ServerUnreachable,  # connection exception
    "28": SourceDenied,  # invalid authorization
    "3D": SourceMissing,  # invalid catalog name
    "42501": SourceDenied,  # insufficient privilege
    "42P01": SourceChanged,  # undefined table: dropped meanwhile
    "53": ServerUnreachable,  # insufficient resources
    **dict.fromkeys(("55P03", "55006"), SourceLocked),  # lock not available; object in use: a slot
    "55": SourceChanged,  # object not in prerequisite state
    "57": ServerUnreachable,  # operator intervention: it is shut down
    "58": SourceDamaged,  # system error: a file cannot be read
    **dict.fromkeys(("XX001", "XX002"), SourceDamaged),
}

_BY = "  -- as a superuser; ROLE is the user of the url"
READ_ALL = f"GRANT pg_read_all_data TO ROLE;{_BY}"
"""Lets a role read all tables; `check` names the role, and whatever else it lacks."""

READ_HIDDEN = f"ALTER ROLE ROLE BYPASSRLS;{_BY}"
"""Lets a role read the rows that row security hides from it."""

_RIGHTS: Mapping[str, str] = {
    "check_enable_rls": "ALTER ROLE ROLE BYPASSRLS;",
    "CheckSlotPermissions": "ALTER ROLE ROLE REPLICATION;",
    "GetConfigOptionByName": "GRANT pg_monitor TO ROLE;",
}
"""The statement that grants what a function of the server refuses."""

_MENDS: Mapping[str, Sequence[str]] = {
    "53100": ("df -h  # on the host of the server, whose disk is full; SHOW data_directory says where that is",),
    "53200": ("ALTER SYSTEM SET max_locks_per_transaction = 1024;  -- then restart the server: it has many tables",),
    "53300": ("ALTER SYSTEM SET max_connections = 200;  -- or more than it is; then restart the server",),
    "55006": ("SELECT * FROM pg_stat_replication;  -- who uses the slot: perhaps a copy of this dbguard",),
    "ReplicationSlotCreate": (  # 53400 also covers other limits
        "SELECT slot_name, slot_type, active FROM pg_replication_slots;  -- drop those that are no longer needed",
        "ALTER SYSTEM SET max_replication_slots = 20;  -- or more than it is; then restart the server",
    ),
}
"""What a person can do, by SQLSTATE or by the function of the server that has reached a limit."""


@contextmanager
def refusals(about: str) -> Iterator[None]:
    """Translate the server's errors that leave the block. Errors of the driver without a server's code are our bugs."""
    try:
        yield
    except psycopg.Error as error:
        lost = isinstance(error, psycopg.OperationalError) or type(error) is psycopg.DatabaseError  # another protocol
        if error.sqlstate is None and not lost:
            raise
        raise refusal(about, error) from error


def silent(about: str, what: str, seconds: float) -> ServerUnreachable:
    """Return an error: a server keeps its connections open but sends nothing."""
    return ServerUnreachable(
        f"{about}: {what}, for {seconds:g} s",
        detail="The connection is open: the server is stopped, its disk hangs, or the network loses its packets. "
        "dbguard has stopped waiting.",
    )


def refusal(about: str, error: psycopg.Error) -> GuardError:
    """Return the meaning of a server's error. Its message is kept: it names objects, but quotes no row."""
    state, said = error.sqlstate or "", _first_line(error)
    if not state:
        return ServerUnreachable(f"{about}: the connection was lost", detail=said)
    kind = _STATES.get(state) or _STATES.get(state[:2]) or SourceChanged
    limit = error.diag.source_function if state == "53400" else None
    hints = _rights(error, said) if state == "42501" else _MENDS.get(limit or state, ())
    detail = "\n".join([f"{said} (SQLSTATE {state})", *getattr(error, "__notes__", ())])
    return kind(f"{about}: the server refused", detail=detail, hints=hints)


def _rights(error: psycopg.Error, said: str) -> Sequence[str]:
    """Return the statement that grants the missing right, if it is known; it is not for databases and large objects."""
    if mend := _RIGHTS.get(error.diag.source_function or ""):
        return [f"{mend}{_BY}"]
    if found := re.search(r"permission denied for (\w+)(?: (\w+)$)?", said):
        match found.groups():
            case ("table" | "view" | "materialized" | "foreign" | "sequence" | "schema", _):
                return [READ_ALL]
            case ("function", str() as name):  # overloads are not told apart: psql runs a line for each
                grant = "SELECT format('GRANT EXECUTE ON FUNCTION %s TO ROLE', oid::regprocedure) FROM pg_proc"
                return [f"/*{_BY.strip(' -')} */ {grant} WHERE proname = '{name}' \\gexec"]
    return ["dbguardctl check NAME  # it says what the role lacks"]


def unconnected(about: str, address: Mapping[str, str], error: psycopg.Error) -> GuardError:
    """Return why connecting failed. Before a connection there are no codes, only messages, perhaps not in English."""
    said = _first_line(error).split(" Multiple connection attempts failed")[0]  # the other attempts failed alike
    if found := re.search(r'database "(.*)" does not exist', said):
        return SourceMissing(
            f"{about}: there is no database {found[1]}",
            detail=said,
            hints=["su postgres -c 'psql -l'  # the existing databases"],
        )
    if found := re.search(r'database "(.*)" is not currently accepting connections', said):
        quoted = found[1].replace('"', '""')
        return SourceDenied(
            f"{about}: nobody can connect to database {found[1]}",
            detail=said,
            hints=[f'ALTER DATABASE "{quoted}" ALLOW_CONNECTIONS true;  -- as a superuser, in another database'],
        )
    if re.search(r"authentication failed|pg_hba\.conf|no password supplied|role .* does not exist", said):
        return SourceDenied(
            f"{about}: the server refuses the login",
            detail=said,
            hints=_hints_for_denied(said, address),
        )
    if "max_wal_senders" in said:
        return ServerUnreachable(
            f"{about}: accepts no more replication connections",
            detail=said,
            hints=["ALTER SYSTEM SET max_wal_senders = 20;  -- or more than it is; then restart the server"],
        )
    if found := re.search('permission denied for database "(.*)"', said):
        role = _in_hba(address.get("user") or pwd.getpwuid(os.geteuid()).pw_name)
        grant = f"GRANT CONNECT ON DATABASE {_in_hba(found[1])} TO {role};  -- as a superuser of the server"
        return SourceDenied(f"{about}: no permission to connect", detail=said, hints=[grant])
    if re.search("certificate", said) and not re.search("client certificate|private key", said):
        return ServerUnreachable(
            f"{about}: the certificate of the server is not accepted, so nothing was sent to it",
            detail=said,
            hints=[_certificate(address)],
        )
    if re.search(r'invalid \w+ value: "', said):  # the library's word for a parameter, before it asks a server
        hints = ["man 5 dbguard.toml  # POSTGRESQL"]
        return PolicyInvalid(f"{about}: its url has a value that is not valid", detail=said, hints=hints)
    said, hints = _unreachable(address, said)
    return ServerUnreachable(f"{about}: cannot be reached", detail=said, hints=hints)


def _unreachable(address: Mapping[str, str], said: str) -> tuple[str, list[str]]:
    """Return what to say of a server that does not answer, and what a person should do first."""
    host = address.get("hostaddr") or address.get("host", "")
    if re.search("definition of service|service file", said):
        return said, [f"{pwd.getpwuid(os.geteuid()).pw_dir}/.pg_service.conf, or that of the system, has to define it"]
    if re.search("could not write init file|No space left on device", said):
        return said, list(_MENDS["53100"])
    if host.startswith("/"):
        lists = shutil.which("pg_lsclusters")
        return said, ["pg_lsclusters  # which servers run, and at which port" if lists else f"ls -A {host}  # sockets"]
    if _reaches_hosts() or not re.search("no error details|unreachable|[Aa]ddress family|refused|resolve", said):
        return said, []
    local = ["dbguardctl protect postgresql:///  # the server of this host, by its socket"]
    return (
        f"{said}\nNo other host can be reached from here: dbguardd.service has network access only with a drop-in.",
        [*(local if re.match(r"localhost$|127\.|::1$", host) else ()), "man 5 dbguard.toml  # POSTGRESQL, Network"],
    )


def line_of_hba(database: str, role: str, host: str) -> str:
    """Return the pg_hba.conf line that lets a role in from a host, or over the socket. The first matching line decides.

    `database` and `role` are already quoted where necessary; "replication" is not a database.
    """
    line = f"host {database} {role} {host} scram-sha-256" if host else f"local {database} {role} peer"
    return f"first in pg_hba.conf: {line}  -- then SELECT pg_reload_conf()"


def _hints_for_denied(said: str, address: Mapping[str, str]) -> list[str]:
    if "pg_hba.conf" in said:
        host = _FROM.search(said)  # as the server sees us
        database = "replication" if "replication" in address else _in_hba(address["dbname"])
        role = _in_hba(address.get("user") or pwd.getpwuid(os.geteuid()).pw_name)
        here = address.get("host", "/").startswith("/")
        seen = f"{host[1]}/{128 if ':' in host[1] else 32}" if host else "ADDRESS"
        return [line_of_hba(database, role, "" if here else seen)]
    if "password" in said:
        user = pwd.getpwuid(os.geteuid())
        place = address.get("passfile") or f"{user.pw_dir}/.pgpass"
        with suppress(OSError):
            if "no password" in said and os.stat(place).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                return [f"chmod 0600 {shlex.quote(place)}  # a file that others may read is ignored"]
        return [f"{place}, of {user.pw_name} and with mode 0600, has a line HOST:PORT:*:USER:PASSWORD"]
    return ["set run_as to a user whom the server knows, or user= in the url", "man 5 dbguard.toml  # POSTGRESQL"]


def _certificate(address: Mapping[str, str]) -> str:
    """Return the command that shows what is wrong with a server's certificate, and how long it is valid."""
    host, port = address.get("host") or address.get("hostaddr") or "HOST", address.get("port", "5432")
    root = address.get("sslrootcert") or f"{pwd.getpwuid(os.geteuid()).pw_dir}/.postgresql/root.crt"
    words = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"{host}:{port}"]
    words += [] if root == "system" else ["-CAfile", root]
    return f"{shlex.join(words)} </dev/null 2>&1 | grep -E 'error|NotAfter|subject='"


def _in_hba(name: str) -> str:
    return name if re.fullmatch("(?!replication$)[a-z_][a-z0-9_]*", name) else '"{}"'.format(name.replace('"', '""'))


def _reaches_hosts() -> bool:
    """Return whether this process could reach another host: in the service's sandbox it lacks a socket or a route."""
    try:
        socket.socket(socket.AF_INET).close()
    except OSError:
        return False
    routes = list[str]()
    with suppress(OSError):
        routes += Path("/proc/self/net/route").read_text().splitlines()[1:]
    with suppress(OSError):
        lines = Path("/proc/self/net/ipv6_route").read_text().splitlines()
        routes += [line for line in lines if not line.endswith(" lo")]
    return bool(routes)


def _first_line(error: psycopg.Error) -> str:
    if error.diag.message_primary:
        return error.diag.message_primary[:500]
    return " ".join(str(error).split())[:500] or type(error).__name__


def no_answer(said: Any) -> SourceInvalid:
    """Return an error: the answer is not one that PostgreSQL gives."""
    return SourceInvalid("PostgreSQL: the server gave an unexpected answer", detail=repr(said)[:500])
