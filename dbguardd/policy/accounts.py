"""Users and groups in the account database of this host."""

from __future__ import annotations

import grp
import pwd

from dbguardd.errors import PolicyInvalid


def uid_of_user(name: str) -> int:
    """Return the uid of a user. Raises PolicyInvalid."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise PolicyInvalid(f"{name}: there is no such user on this host") from None


def gid_of_group(name: str) -> int:
    """Return the gid of a group. Raises PolicyInvalid."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise PolicyInvalid(f"{name}: there is no such group on this host") from None
