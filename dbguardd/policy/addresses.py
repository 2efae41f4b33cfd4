"""The addresses of PostgreSQL servers: which are valid, and which sockets they lead to."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from dbguardd.places import POSTGRESQL_SOCKETS
from dbguardd.policy.units import refuse

_SERVER = re.compile(r"(\[[^]]*\]|[^:]*)(?::(\d*))?")
_URL = re.compile(r"postgres(ql)?://\S*|service=[A-Za-z0-9_.-]+")
_PORT = "5432"


def server_url(value: str) -> str:
    """Return the address of a server unchanged. Refuses an invalid one, and one that contains a password."""
    if wrong := wrong_with(value):
        raise refuse(wrong)
    return value


def wrong_with(url: str) -> str:
    """Return what is wrong with the address of a server, in words; an empty text if it is valid."""
    if not _URL.fullmatch(url):
        return 'must be the address of a server, such as "postgresql:///" or "postgresql://user@host/dbname"'
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or any("password" in name.lower() for name in parse_qs(parts.query))
        ports = [int(port) for _, port in _servers(parts) if port]
    except ValueError:
        return "must be the address of a server, and its port a number"
    if secret:
        return "must not have a password in it: put that into ~/.pgpass of the user in run_as"
    return "has no port that a server can have" if 0 in ports else ""


def _servers(parts: SplitResult) -> list[tuple[str, str]]:
    """Return host and port of each server that an address names, as written. Raises ValueError if it is invalid."""
    found = []
    for named in parts.netloc.rpartition("@")[2].split(","):
        if (match := _SERVER.fullmatch(named)) is None or int(match[2] or 0) >= 1 << 16:
            raise ValueError(named)
        found.append((unquote(match[1].strip("[]")), match[2] or ""))  # parts.hostname would be in lower case
    return found


def whole(url: str) -> str:
    """Return an address in full: people write "postgresql:" for the server of this host."""
    return "postgresql:///" if url in ("postgresql:", "postgres:", "postgresql://", "postgres://") else url


def named_in(url: str) -> str:
    """Return the database that an address names; empty for all databases of the server."""
    if url.startswith("service="):
        return ""
    parts = urlsplit(url)
    return parse_qs(parts.query).get("dbname", [unquote(parts.path.lstrip("/"))])[-1]


def socket_of(url: str) -> str | None:
    """Return the path of the socket that an address leads to; None for a network address or a service.

    If it names several servers, the first one on this host counts.
    """
    return next(iter(sockets_of(url)), None)


def sockets_of(url: str) -> list[str]:
    """Return the socket paths of the servers on this host that an address names."""
    if url.startswith("service="):
        return []
    parts = urlsplit(url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if {"service", "hostaddr"} & set(asked):
        return []
    named = _servers(parts)
    hosts = asked["host"].split(",") if "host" in asked else [host or POSTGRESQL_SOCKETS for host, _ in named]
    ports = asked["port"].split(",") if "port" in asked else [port for _, port in named]
    several = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)  # a single port applies to all
    return [
        f"{host.rstrip('/')}/.s.PGSQL.{port or _PORT}"
        for host, port in zip(hosts, several, strict=True)
        if host.startswith("/")
    ]
