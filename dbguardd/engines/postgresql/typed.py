"""Commands for a person to type that act on a live server: on its host if it is reached by its socket.

A local server admits the host's user of the same name as a role: not root, and rarely the owner of a table.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from psycopg.conninfo import make_conninfo

from dbguardd.engines.postgresql.connect import Address, Connection
from dbguardd.engines.postgresql.roles import ROLE
from dbguardd.places import POSTGRESQL_SOCKETS

_PSQL = ("psql", "-X")
_ELSEWHERE = ("host", "hostaddr", "port", "service")


def statements(connection: Connection, *sql: str) -> str:
    """Return a command that runs each statement as this connection's role; or the statements, if it is no superuser."""
    info = connection.info
    if info.parameter_status("is_superuser") != "on":
        return "; ".join(sql) + ";  -- as a superuser of the server"
    address = {"host": info.host, "port": str(info.port)}
    return _line([*_asking(address, info.user, _PSQL, info.dbname), *(word for one in sql for word in ("-c", one))])


def running(live: Address, superuser: str, owner: str, database: str) -> str:
    """Return the beginning of a command that runs a text as the owner of what is in it, or else as a superuser."""
    whole = (*_PSQL, "-1", "-v", "ON_ERROR_STOP=1")
    if _is_elsewhere(live):
        return _line([*_asking(live, owner or superuser, whole, database), "-f", "-"])
    quoted = owner.replace('"', '""')
    turning = ["-c", f'SET ROLE "{quoted}"'] if owner else []
    return _line([*_asking(live, superuser, whole, database), *turning, "-f", "-"])


def _asking(address: Address, role: str, psql: Sequence[str], database: str) -> list[str]:
    reach = {name: address[name] for name in _ELSEWHERE if name in address}
    if several := any("," in address.get(name, "") for name in ("host", "hostaddr")):
        reach[ROLE] = "read-write"  # what is typed writes, and psql would take a standby; older ones know no "primary"
    if _is_elsewhere(address):
        return [*psql, "-d", make_conninfo("", **reach, user=role, dbname=database)]
    user, host, port = pwd.getpwuid(os.geteuid()).pw_name, address.get("host"), address.get("port", "5432")
    words = as_owner(*psql)
    if several:
        return [*words, "-d", make_conninfo("", **reach, user=role, dbname=database)]
    words += ["-h", host] if host and os.path.realpath(host) != os.path.realpath(POSTGRESQL_SOCKETS) else []
    words += ["-p", port] if port != "5432" else []
    return [*words, *(["-U", role] if role != user else []), "-d", as_address(database)]


def as_owner(*words: str) -> list[str]:
    """Return a command, run as the server's owner, as it is typed by root, or by that owner if the daemon is theirs.

    Only root may use runuser, and an ordinary user who runs a daemon of their own is not root.
    """
    if 0 != os.geteuid() == _uid_of(os.getppid()):
        return [*words]
    return ["runuser", "-u", pwd.getpwuid(os.geteuid()).pw_name, "--", *words]


def _uid_of(process: int) -> int | None:
    with suppress(OSError):  # /proc may hide the processes of others
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    return None


def in_one_line(quoted: bytes) -> str:
    """Return a name, quoted by quote_ident(), so that it can be typed: unprintable characters are escaped."""
    said = quoted.decode("utf-8", "surrogateescape")
    if said.isprintable():
        return said
    escaped = said.replace("\\", "\\\\")
    return "U&" + "".join(char if char.isprintable() else f"\\+{ord(char):06x}" for char in escaped)


def as_address(database: str) -> str:
    """Return a database name safe to pass to psql: the name may have been chosen as "host=elsewhere"."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", database)
    return database if plain else f"postgresql:///{quote(database, safe='', errors='surrogateescape')}"


def _is_elsewhere(address: Address) -> bool:
    return not address.get("host", "/").startswith("/") or bool(address.keys() & {"hostaddr", "service"})


def _line(words: Sequence[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """Return a word quoted for a shell, in double quotes if it contains SQL strings, for readability.

    The result is one line whatever a name contains, and still means exactly that name: one with a single blank instead
    of a line feed may exist too.
    """
    if word.split() != word.split(" "):
        return "$'" + "".join(char if char.isprintable() and char not in "'\\" else _bytes(char) for char in word) + "'"
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _bytes(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
