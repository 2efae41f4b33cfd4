"""Where a package puts what daemon and client share."""

from __future__ import annotations

POLICY = "/etc/dbguard/policy.toml"
SOCKET = "/run/dbguard/api.sock"
