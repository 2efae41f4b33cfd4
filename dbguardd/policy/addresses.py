"""The addresses of PostgreSQL servers: what is one, what must not be in it, and where it leads."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from dbguardd.places import POSTGRESQL_SOCKETS
from dbguardd.policy.units import refuse

_SERVER = re.compile(r"(\[[^]]*\]|[^:]*)(?::(\d*))?")
_URL = re.compile(r"postgres(ql)?://\S*|service=[A-Za-z0-9_.-]+")
_PORT = "5432"


def server_url(value: str) -> str:
    """Return the address of a server as it is written. Refuses what is none, and a password in it."""
    if wrong := wrong_with(value):
        raise refuse(wrong)
    return value


def wrong_with(url: str) -> str:
    """Return what is wrong with the address of a server, in words; nothing if it is one."""
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
    """Return host and port of each server that an address names, as it has them. Raises ValueError for what is none."""
    found = []
    for named in parts.netloc.rpartition("@")[2].split(","):
        if (match := _SERVER.fullmatch(named)) is None or int(match[2] or 0) >= 1 << 16:
            raise ValueError(named)
        found.append((unquote(match[1].strip("[]")), match[2] or ""))  # hostname would be in small letters
    return found


def whole(url: str) -> str:
    """Return an address in full: people write "postgresql:" for the server of this host."""
    return "postgresql:///" if url in ("postgresql:", "postgres:", "postgresql://", "postgres://") else url


def named_in(url: str) -> str:
    """Return the database that an address names; empty: all that the server has."""
    if url.startswith("service="):
        return ""
    parts = urlsplit(url)
    return parse_qs(parts.query).get("dbname", [unquote(parts.path.lstrip("/"))])[-1]


def socket_of(url: str) -> str | None:
    """Return the path of the socket that an address leads to; None if it leads over the network, or to a service.

    Of several servers it is the first of this host.
    """
    return next(iter(sockets_of(url)), None)


def sockets_of(url: str) -> list[str]:
    """Return the paths of the sockets of the servers of this host that an address names."""
    if url.startswith("service="):
        return []
    parts = urlsplit(url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if {"service", "hostaddr"} & set(asked):
        return []
    named = _servers(parts)
    hosts = asked["host"].split(",") if "host" in asked else [host or POSTGRESQL_SOCKETS for host, _ in named]
    ports = asked["port"].split(",") if "port" in asked else [port for _, port in named]
    several = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)  # one is that of all
    return [
        f"{host.rstrip('/')}/.s.PGSQL.{port or _PORT}"
        for host, port in zip(hosts, several, strict=True)
        if host.startswith("/")
    ]
