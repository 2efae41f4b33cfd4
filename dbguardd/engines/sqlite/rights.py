"""Access to a database file: owner, group, mode, ACL and the user's extended attributes.

They are stored with a backup, and a restored file gets them as far as the restoring user may set them.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbguardd.flow import Facts

_ACCESS_LIST = "system.posix_acl_access"  # acl(5), in the kernel's binary form, with numeric users and groups
_MOST_BYTES = 64 << 10  # of all attributes together; anything larger is content and no access right


def rights_of(path: str | Path, found: os.stat_result) -> dict[str, Any]:
    """Return the rights of a file as facts of a backup. Labels (security.*) depend on the place and are left out."""
    kept, room = dict[str, str](), _MOST_BYTES
    with suppress(OSError):  # the file system has no attributes
        for name in sorted(os.listxattr(path)):
            if name == _ACCESS_LIST or name.startswith("user."):
                value = os.getxattr(path, name)
                room -= len(name) + len(value)
                if room >= 0:
                    kept[name] = b64encode(value).decode()
    return {
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "owner": _called(pwd.getpwuid, found.st_uid),
        "group": _called(grp.getgrgid, found.st_gid),
        "attributes": kept,
    }


def give(file: Path, rights: Facts) -> list[str]:
    """Give a new file these rights, except the mode, which comes last; return in words what could not be set.

    Names count, not numbers: on another host a number may belong to another user. An ACL, which has numbers, is then
    left out.
    """
    lost = []
    same = True
    for what, number, lookup in (("owner", "uid", _user), ("group", "gid", _group)):
        if number not in rights:
            continue  # a backup from before rights were stored
        was, name = int(rights[number]), rights.get(what)
        try:
            wanted = lookup(str(name)) if name else was
        except KeyError:
            lost.append(f"{what} {name}: not known on this host")
            same = False
            continue
        same = same and wanted == was
        try:
            os.chown(file, *((wanted, -1) if what == "owner" else (-1, wanted)), follow_symlinks=False)
        except OSError as error:
            lost.append(f"{what} {name or was}: {error.strerror}")
    return lost + _give_attributes(file, rights.get("attributes") or {}, same)


def _give_attributes(file: Path, attributes: Mapping[str, str], same: bool) -> list[str]:
    lost = []
    with suppress(OSError):  # usually there is none, unless the directory has a default ACL
        os.removexattr(file, _ACCESS_LIST)
    for name, value in attributes.items():
        what = "access list" if name == _ACCESS_LIST else f"attribute {name}"
        if name == _ACCESS_LIST and not same:
            lost.append(f"{what}: users and groups have other numbers here")
            continue
        try:
            os.setxattr(file, name, b64decode(value))
        except OSError as error:
            lost.append(f"{what}: {error.strerror}")
    return lost


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _called(lookup: Callable[[int], Any], number: int) -> str | None:
    try:
        return str(lookup(number)[0])
    except KeyError:
        return None
