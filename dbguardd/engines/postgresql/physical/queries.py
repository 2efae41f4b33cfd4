"""Proof queries on a recovered cluster, run by a role that may read everything and do nothing else.

Planning and running a query runs users' functions (of an index, a view, a policy) with the rights of the querying role.
As a superuser these could load a library and escape any sandbox. So the role is new and only a member of reading roles,
and its session starts as it: no RESET leads to another role. It is dropped afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from dbguardd.engines.base import Finding, ProofQuery
from dbguardd.engines.postgresql.connect import UNHAMPERED, Connection, connected
from dbguardd.engines.postgresql.meaning import refused
from dbguardd.engines.postgresql.physical.check import LOCK_MILLISECONDS
from dbguardd.engines.postgresql.prove import ask, no_database, only_of
from dbguardd.engines.postgresql.server import Server
from dbguardd.errors import GuardError

READS = f"-c role=none {UNHAMPERED} -c default_transaction_read_only=on -c lock_timeout={LOCK_MILLISECONDS}"
"""libpq options for connections of that role."""

_MAKE = (
    "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS",
    "GRANT {reads} TO {role}",
)

Superuser = Callable[[str], AbstractContextManager[Connection]]
"""Connects to a database as the superuser, for statements that run nobody else's functions."""


def ask_all(
    server: Server, queries: Sequence[ProofQuery], database: str, names: Sequence[str], superuser: Superuser
) -> Iterator[Finding]:
    """Yield the finding of each query. One that names no database goes to `database`, or to the only user database."""
    for query in queries:
        asked = query.database or database or only_of([name for name in names if name != "template1"])
        if asked not in names:
            yield no_database(query, asked)
            continue
        try:
            with _reader(asked, superuser) as role:
                address = {**server.address(role), "options": READS}
                yield ask(query, connected(address, asked, about="throw-away server"))
        except GuardError as error:
            yield refused(f"query: {query.sql}", error)


@contextmanager
def _reader(database: str, superuser: Superuser) -> Iterator[str]:
    """Create the role for the length of a block."""
    with superuser(database) as connection:
        ((quoted,),) = connection.execute(b"SELECT quote_ident(current_database())", prepare=False).fetchall()
        role = make_reader(connection, bytes(quoted))
    try:
        yield role
    finally:
        with superuser(database) as connection:  # by what no event trigger of the cluster fires for, nor refuses
            connection.execute(b"REVOKE ALL ON DATABASE " + bytes(quoted) + f" FROM {role}".encode(), prepare=False)
            connection.execute(f"DROP ROLE {role}".encode(), prepare=False)


def make_reader(superuser: Connection, database: bytes, reads: str = "pg_read_all_data, pg_monitor") -> str:
    """Create the role as a member of `reads`, let it connect to a database (its name quoted), and return it."""
    role = f"dbguard_{secrets.token_hex(8)}"
    for statement in _MAKE:
        superuser.execute(statement.format(role=role, reads=reads).encode(), prepare=False)
    superuser.execute(b"GRANT CONNECT ON DATABASE " + database + f" TO {role}".encode(), prepare=False)
    return role
