"""Where a package puts what daemon and client share."""

from __future__ import annotations

POLICY = "/etc/dbguard/policy.toml"
SOCKET = "/run/dbguard/api.sock"

PUSH_SOCKET = "push"
"""The socket in the private directory of a follower, at which archive_command asks if a file is stored."""

POSTGRESQL_SOCKETS = "/run/postgresql"
"""Where the servers of a distribution have their sockets, if nothing else is said."""
