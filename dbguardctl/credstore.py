"""Secrets as systemd credentials: encrypted files that only the service manager opens, for dbguardd alone.

A credential NAME is the file dbguard.NAME in systemd's own store, encrypted with the host's key or its TPM, and a
drop-in of dbguardd.service that loads it. Both belong to root: the daemon, which is another user, cannot write them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dbguardd.errors import ConfirmMissing, NotFound, PlaceDenied, Unsupported, Usage, of_file

STORE = Path("/etc/credstore.encrypted")
DROP_INS = Path("/etc/systemd/system/dbguardd.service.d")
MOST_BYTES = 64 << 10  # the most that dbguardd reads of a secret
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", re.ASCII)
_TOOLS = "/usr/sbin:/usr/bin:/sbin:/bin"


class Credstore:
    """The credentials of dbguardd below `root`, which is / except in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._store = root / STORE.relative_to("/")
        self._drop_ins = root / DROP_INS.relative_to("/")

    def check(self, name: str, verb: str) -> None:
        """Raise Usage for an invalid name, PlaceDenied for a user who is not root."""
        if not _NAME.fullmatch(name):
            raise Usage(
                f"credential {name!r}: not a name for a credential",
                detail="Letters, digits, . _ and -, not a dot first, at most 200 of them.",
            )
        if os.geteuid() != 0:
            raise PlaceDenied(
                f"credential {name}: only root can",
                detail="Credentials lie in the service manager's store, which belongs to root.",
                hints=[f"sudo dbguardctl credential {verb} {name}"],
            )

    def names(self) -> dict[str, float] | None:
        """Return when each credential was set (seconds since 1970); None if the user may not see them."""
        try:
            found = list(self._store.iterdir())
        except FileNotFoundError:
            return {}
        except OSError:
            return None
        prefix = "dbguard."
        return {path.name.removeprefix(prefix): path.stat().st_mtime for path in found if path.name.startswith(prefix)}

    def set(self, name: str, secret: bytes, *, replace: bool) -> None:
        """Encrypt a secret for this host and give it to dbguardd from its next start on.

        Raises Usage, PlaceDenied, Unsupported, ConfirmMissing (it exists, and `replace` is not set), NoSpace, Degraded.
        """
        self.check(name, "set")
        if not 0 < len(secret) <= MOST_BYTES:
            what = "is empty" if not secret else f"has {len(secret)} bytes, {MOST_BYTES} are the most"
            raise Usage(f"credential {name}: the secret {what}")
        file = self._store / f"dbguard.{name}"
        if file.exists() and not replace:
            raise ConfirmMissing(
                f"credential {name}: is set already",
                detail="If it opens backups and you replace it, only the recovery key opens them from then on.",
                hints=[f"dbguardctl credential set {name} --replace"],
            )
        draft = self._store / f".dbguard.{name}.new"
        try:
            self._store.mkdir(mode=0o700, exist_ok=True)
            draft.unlink(missing_ok=True)
            _run(["systemd-creds", "encrypt", f"--name={name}", "-", str(draft)], secret)
            draft.chmod(0o600)
            _durable(draft)
            draft.rename(file)
            self._drop_ins.mkdir(mode=0o755, exist_ok=True)
            line = f"# Made by dbguardctl credential set.\n[Service]\nLoadCredentialEncrypted={name}:dbguard.{name}\n"
            self._drop_in(name).write_text(line, encoding="ascii")
            _durable(self._drop_in(name))
        except OSError as error:
            raise of_file(f"credential {name}: cannot be written", error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        _run(["systemctl", "daemon-reload"], b"")

    def remove(self, name: str) -> None:
        """Stop giving a credential to dbguardd, and delete it.

        Raises Usage, PlaceDenied, NotFound, Unsupported, Degraded.
        """
        self.check(name, "rm")
        file = self._store / f"dbguard.{name}"
        if not file.exists() and not self._drop_in(name).exists():
            raise NotFound(f"credential {name}: is not set", hints=["dbguardctl credential list"])
        try:
            self._drop_in(name).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        except OSError as error:
            raise of_file(f"credential {name}: cannot be removed", error) from error
        _run(["systemctl", "daemon-reload"], b"")

    def _drop_in(self, name: str) -> Path:
        return self._drop_ins / f"credential-{name}.conf"


def _run(argv: Sequence[str], given: bytes) -> None:
    program = shutil.which(argv[0], path=_TOOLS)
    if program is None:
        raise Unsupported(
            f"{argv[0]}: is not installed",
            detail="Credentials need systemd 250 or later; a secret can also be a file or come from a command.",
            hints=["dbguardctl config explain key.secret"],
        )
    done = subprocess.run(
        [program, *argv[1:]], input=given, capture_output=True, env={"PATH": _TOOLS, "LC_ALL": "C.UTF-8"}, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Unsupported(f"{argv[0]}: failed with status {done.returncode}", detail=said)


def _durable(path: Path) -> None:
    for place, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        file = os.open(place, flags | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
