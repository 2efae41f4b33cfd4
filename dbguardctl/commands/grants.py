"""The SQL of `init --sql`: the least privileges that a PostgreSQL role needs for dumps."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

from dbguardd.errors import Usage
from dbguardd.kinds import engine_of

_ROLE = "dbguard"
_TAG = "$dbguard$"
_TEXT = """\
-- The role {role}, for backups by dumps: it may read everything, and nothing else.
-- Run as a superuser of the server: psql -X -1 -v ON_ERROR_STOP=1 -d postgres -f THIS
-- If the server wants a password of it, set one afterwards (psql: \\password), and write it into ~/.pgpass of the user
-- in run_as. For backups by pages nobody is needed on the server's host: they are made as its own user, a superuser.
-- From another host they need also, and a line in pg_hba.conf (dbguard.toml(5), POSTGRESQL, Over the network):
--   ALTER ROLE {role} REPLICATION; GRANT pg_monitor TO {role};
CREATE ROLE {role} LOGIN BYPASSRLS;  -- row security would hide rows
GRANT pg_read_all_data TO {role};  -- every table; large objects of others are for superusers only
DO {tag}
DECLARE name text;
BEGIN
  FOR name IN SELECT datname FROM pg_catalog.pg_database WHERE datallowconn{only} LOOP
    IF NOT pg_catalog.has_database_privilege({said}, name, 'CONNECT') THEN
      EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO %I', name, {said});
    END IF;
  END LOOP;
END {tag};
"""


def grants(url: str) -> str:
    """Return the SQL that creates the role in an address, for the databases in it. Raises Usage."""
    if engine_of(url) != "postgresql":
        raise Usage(
            f"init: {url}: is no address of a PostgreSQL server", hints=["dbguardctl init --sql postgresql:///"]
        )
    role, database = _named(url)
    if any(not name.isprintable() or _TAG in name for name in (role, database)):
        raise Usage("init: such a name of a role or a database has to be written by hand")
    only = f" AND datname = {_literal(database)}" if database else ""
    quoted = '"' + role.replace('"', '""') + '"'
    return _TEXT.format(role=quoted, tag=_TAG, said=_literal(role), only=only)


def _named(url: str) -> tuple[str, str]:
    """Return the role and the database that an address names, or the default role and no database."""
    if url.startswith("service="):
        return _ROLE, ""
    parts = urlsplit(url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    user = unquote(parts.netloc.rpartition("@")[0].partition(":")[0])
    return asked.get("user") or user or _ROLE, asked.get("dbname") or unquote(parts.path.lstrip("/"))


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
