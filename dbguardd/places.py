"""Where a package puts what daemon and client share."""

from __future__ import annotations

POLICY = "/etc/dbguard/policy.toml"
SOCKET = "/run/dbguard/api.sock"

POSTGRESQL_SOCKETS = "/run/postgresql"
"""Where the servers of a distribution have their sockets, if nothing else is said."""
