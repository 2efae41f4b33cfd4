"""Default paths that the daemon and the client share."""

from __future__ import annotations

POLICY = "/etc/dbguard/policy.toml"
SOCKET = "/run/dbguard/api.sock"

PUSH_SOCKET = "push"
"""The name of the socket in a follower's private directory at which archive_command asks whether a file is stored."""

POSTGRESQL_SOCKETS = "/run/postgresql"
"""Where the packages of distributions put the sockets of PostgreSQL servers: the default."""
