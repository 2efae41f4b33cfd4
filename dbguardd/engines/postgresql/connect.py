"""Connects to a server, and reads small results.

A connection uses the bytes of the database (client_encoding SQL_ASCII): nothing is converted, so no conversion can
fail. Names are bytes; `shown` turns them into text for people. Names are not resolved by a search path, and values are
formatted independently of settings. Passwords come from where libpq looks for them: ~/.pgpass and service files of the
user who runs this.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from dbguardd.engines.postgresql.refusals import no_answer, refusals, unconnected
from dbguardd.engines.postgresql.tools import OLDEST
from dbguardd.errors import PolicyInvalid, Unsupported
from dbguardd.niceness import TRIES, WAIT_SECONDS, lower_session
from dbguardd.places import POSTGRESQL_SOCKETS

Connection = psycopg.Connection[tuple[Any, ...]]
Address = Mapping[str, str]
"""Connection parameters for libpq: host, port, user, dbname, service, sslmode ..."""

LIVELY = {"connect_timeout": 15, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 6}
LIVELY |= {"tcp_user_timeout": 120_000}
"""For libpq. While a server sends its files, the session that holds its WAL is silent for hours: without keepalives a
firewall forgets the connection, and a dead server is waited for, as by pg_dump. Settings in the url take precedence."""
_SETTINGS = (
    "SET search_path = ''",
    "SET row_security = off",
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET idle_session_timeout = 0",
    "SET default_transaction_isolation = 'read committed'",
    "SET default_transaction_deferrable = off",
    "SET bytea_output = 'hex'",
    "SET datestyle = 'ISO, YMD'",
    "SET intervalstyle = 'postgres'",
    "SET lc_monetary = 'C'",
    "SET extra_float_digits = 3",
    "SET timezone = 'UTC'",
    "SET xmloption = 'content'",
    *("SET quote_all_identifiers = off", "SET standard_conforming_strings = on", "SET exit_on_error = off"),
    "SET synchronize_seqscans = off",
)
_LATER_SETTINGS = (
    (14, "SET client_connection_check_interval = '1s'"),  # the server ends our query soon after we die
    (17, "SET transaction_timeout = 0"),
)
"""Each with the first version that knows it."""
UNHAMPERED = (
    r"-c local_preload_libraries= -c idle_session_timeout=0 -c statement_timeout=0 -c lock_timeout=0 "
    r"-c default_transaction_isolation=read\ committed -c default_transaction_deferrable=off"
)
"""Options for libpq. They override what a database's owner may set for all who connect, such as being disconnected at
once, or waiting forever until others have finished."""
_MISSED = "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=6"
"""Keepalives for the server: if our host loses power, it ends our silent sessions, and their slots, within minutes. No
tcp_user_timeout: that would also end a session whose data we do not read, and a storage may stall for longer."""
_OPTIONS = f"-c role=none {UNHAMPERED} {_MISSED}"
_FREE = b"""
SELECT current_setting('max_connections')::int8
  - (SELECT sum(numbackends) FROM pg_stat_database)::int8  -- others than clients are among them
  - (SELECT sum(setting::int8) FROM pg_settings
     WHERE name IN ('superuser_reserved_connections', 'reserved_connections'))::int8
"""
_SERVERS = ("host", "hostaddr", "port", "target_session_attrs")
_TAKES_NONE = re.compile("startup parameter|command-line option")
"""What a proxy such as pgbouncer says of a connection with options."""


def address_of(url: str) -> dict[str, str]:
    """Return the connection parameters in a policy's url. Raises PolicyInvalid."""
    try:
        said = {key: str(value) for key, value in conninfo_to_dict(url).items() if value not in (None, "")}
    except psycopg.ProgrammingError as error:
        hints = ["man 5 dbguard.toml  # POSTGRESQL"]
        what = f"{url}: is not the address of a PostgreSQL server"
        raise PolicyInvalid(what, detail=str(error).strip(), hints=hints) from error
    if "service" in said:
        said = {**_of_service(said["service"]), **said}
    elif not {"host", "hostaddr"} & set(said):
        said["host"] = POSTGRESQL_SOCKETS
    return said


def _of_service(name: str) -> dict[str, str]:
    """Return which servers a service of this user or of the system names, and the role that it requests.

    The library finds and reads the file. Nothing is returned of a service that is not defined: connecting says so.
    """
    before = os.environ.get("PGSERVICE")
    os.environ["PGSERVICE"] = name
    try:
        options = psycopg.pq.Conninfo.get_defaults()
    finally:
        del os.environ["PGSERVICE"]
        if before is not None:
            os.environ["PGSERVICE"] = before
    told = {one.keyword.decode(): one.val for one in options if one.val and one.val != one.compiled}
    return {key: told[key].decode() for key in _SERVERS if key in told}


def place_of(address: Address) -> str:
    """Return a description of the server of an address; never a password."""
    if "service" in address:
        return f"service {address['service']}"
    host = address.get("host", "")
    where = host if host and not host.startswith("/") else "local server" + (f" in {host}" if host else "")
    return f"PostgreSQL, {where}" + (f", port {address['port']}" if "port" in address else "")


def parameters(address: Address, database: str = "", *, plain: bool = False) -> dict[str, str]:
    """Return the libpq parameters for a database of a server; options in the url take precedence over ours.

    With `plain` ours are omitted: a proxy such as pgbouncer may refuse them.
    """
    found = {**address, **({"dbname": database} if database else {})}
    found.setdefault("dbname", "postgres")
    if not plain:
        found["options"] = f"{_OPTIONS} {found.get('options', '')}".strip()
    return found


@contextmanager
def connected(address: Address, database: str = "", about: str = "") -> Iterator[Connection]:
    """Connect for the length of a block; the server's errors become ours, also those inside the block."""
    connection = connect(address, database, about)
    try:
        with refusals(about or place_of(address)):
            yield connection
    finally:
        connection.close()


def connect(address: Address, database: str = "", about: str = "") -> Connection:
    """Return a connection in no transaction. Raises ServerUnreachable, SourceDenied, SourceMissing ..."""
    about = about or place_of(address)
    connection = connect_bare(address, database, about)
    try:
        with refusals(about):
            if connection.info.server_version // 10000 < OLDEST:
                raise Unsupported(
                    f"{about}: PostgreSQL {version_of(connection)} is too old",
                    detail=f"Servers from PostgreSQL {OLDEST} on are backed up.",
                )
            for setting in _SETTINGS:
                connection.execute(setting.encode(), prepare=False)
            for first, setting in _LATER_SETTINGS:
                if major_of(connection) >= first:
                    with suppress(psycopg.errors.InvalidParameterValue):  # not every system can detect a lost client
                        connection.execute(setting.encode(), prepare=False)
    except BaseException:
        connection.close()
        raise
    give_way(connection, connection.info.backend_pid)
    return connection


def give_way(connection: Connection, pid: int, *, reads_much: bool = False) -> None:
    """Give a process that serves us at a connection's local server our own niceness: applications come first.

    Only the server's owner may. The process must be a child of the one that listens: behind a proxy it serves others.
    With `reads_much` its session gives way as well: each process of a server has one. That may take 0.1 s.
    """
    if not (server := listener_of(connection)):
        return
    with suppress(OSError, ValueError):
        ours, its = (os.getpriority(os.PRIO_PROCESS, one) for one in (0, pid))
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        if parent == server and its <= ours:
            os.setpriority(os.PRIO_PROCESS, pid, ours)
            for _ in range(TRIES if reads_much else 0):
                if lower_session(pid, ours):
                    break
                time.sleep(WAIT_SECONDS)


def listener_of(connection: Connection) -> int:
    """Return the process on this host that listens where this connection leads to; 0 if it is not on this host."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        if line.family == socket.AF_UNIX:
            (server, _uid, _gid) = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(server)
    return 0


def connect_bare(address: Address, database: str, about: str) -> Connection:
    """Return a connection without sending SQL, which not every connection accepts. Raises as connect()."""
    where = parameters(address, database)
    usual = {"application_name": "dbguard", "client_encoding": "SQL_ASCII", **LIVELY}
    if where.get("sslrootcert") == "system":
        _trust_whom_the_system_trusts()
    try:
        try:
            return psycopg.connect(**{**usual, **where}, autocommit=True)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            if not _TAKES_NONE.search(str(error)):
                raise
            return psycopg.connect(**{**usual, **parameters(address, database, plain=True)}, autocommit=True)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise unconnected(about, where, error) from error


def is_plain(connection: Connection) -> bool:
    """Return whether a connection was only possible without our options."""
    return _OPTIONS not in (connection.info.options or "")


def _trust_whom_the_system_trusts() -> None:
    """Tell the driver where this system's certificates are: it has an OpenSSL of its own with another default path."""
    import ssl  # noqa: PLC0415 - Python uses the system's OpenSSL; most servers need neither

    places = ssl.get_default_verify_paths()
    os.environ.setdefault(places.openssl_cafile_env, places.openssl_cafile)
    os.environ.setdefault(places.openssl_capath_env, places.openssl_capath)


def version_of(connection: Connection) -> str:
    """Return the version of the server: "15.18"."""
    number = connection.info.server_version
    return f"{number // 10000}.{number % 10000}"


def major_of(connection: Connection) -> int:
    """Return the major version of the server."""
    return connection.info.server_version // 10000


def rows(connection: Connection, query: bytes, *values: Any) -> list[tuple[Any, ...]]:
    """Return all rows of a small result; text comes as bytes. Raises SourceInvalid for an answer that has no rows."""
    try:
        return connection.execute(query, values or None, prepare=False).fetchall()
    except (psycopg.Error, ValueError, ArithmeticError) as error:
        if isinstance(error, psycopg.OperationalError) or getattr(error, "sqlstate", None):
            raise
        raise no_answer(error) from error


def row(connection: Connection, kinds: Sequence[type], query: bytes, *values: Any) -> tuple[Any, ...]:
    """Return the only row, with values of these types. Raises SourceInvalid otherwise: any server may be answering."""
    found = rows(connection, query, *values)
    if [tuple(map(type, one)) for one in found] != [tuple(kinds)]:
        raise no_answer(found)
    return found[0]


def free_connections(connection: Connection) -> int:
    """Return how many more sessions the server admits of roles without privileges; perhaps fewer, but never more.

    Of pg_stat_activity a role may see only its own sessions: it says nothing about how many others there are.
    """
    return int(row(connection, (int,), _FREE)[0])


def text(value: Any) -> str:
    """Return a number, a version or a keyword from the server as text. Not for names, which would lose bytes."""
    return bytes(value).decode("ascii", "replace") if isinstance(value, bytes | memoryview) else str(value)


def shown(name: bytes) -> str:
    """Return a name as text: bytes that are not UTF-8 are escaped in hexadecimal, so different names stay different."""
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
