"""Where a package puts what daemon and client share."""

from __future__ import annotations

POLICY = "/etc/dbguard/policy.toml"
SOCKET = "/run/dbguard/api.sock"

PUSH_SOCKET = "push"
"""The socket in the private directory of a follower, at which archive_command asks if a file is stored."""

SERVERS = {"postgresql:": "postgresql", "postgres:": "postgresql", "service=": "postgresql"}
"""How the addresses of servers begin, and which engine each means; all else is a path."""

POSTGRESQL_SOCKETS = "/run/postgresql"
"""Where the servers of a distribution have their sockets, if nothing else is said."""
