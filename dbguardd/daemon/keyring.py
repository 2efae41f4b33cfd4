"""Keys and secrets: makes and tests recovery keys, and lists the credentials that systemd gave to this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from dbguardd.catalog import Who, to_text
from dbguardd.catalog.effects import recovery
from dbguardd.daemon.live import Order
from dbguardd.daemon.operations import Operations
from dbguardd.errors import Busy, ConfirmMissing, NotFound, Unsupported
from dbguardd.policy import Policy

Json = dict[str, Any]


async def make_sheet(operations: Operations, key: str, who: Who) -> Json:
    """Make a recovery identity, let it open the repository, and return it once. Raises NotFound, Unsupported."""
    storages = _storages(operations, key)
    if len(storages) > 1:
        raise Unsupported(
            f"key {key}: opens {len(storages)} storages, but a sheet is for one",
            detail="Make an age identity on another machine and name its recipient in the policy: it opens all.",
            hints=["age-keygen", f'[key.{key}] recovery = ["age1..."]'],
        )
    others = recovery(operations.catalog.settings, key)
    made = await operations.runner.perform(Order("recovery-sheet", {}, who, storage=storages[0]))
    from dbguardd.keys import Secret, qr_svg, recovery_sheet  # noqa: PLC0415 - once in a year, and heavy

    identity, recipient = Secret(str(made["identity"]).encode("ascii")), str(made["recipient"])
    places = {operations.inforce.storage(storages[0]).path: str(made.get("repository", ""))}
    marks = {name: str(made.get(name, "")) for name in ("mark", "reader")}
    host, now = operations.host, operations.now()
    return {
        "key": key,
        "identity": made["identity"],
        "recipient": recipient,
        "others": others,
        "sheet_text": recovery_sheet(identity, recipient, host=host, made_at=now, repositories=places, **marks),
        "qr_svg": qr_svg(identity),
    }


async def try_identity(operations: Operations, key: str, identity: str, who: Who) -> Json:
    """Open every repository of the key with the identity, as after a disaster. Raises NotFound, KeyRefused."""
    tested = []
    for storage in _storages(operations, key):
        settings = operations.catalog.settings
        known = settings.get(f"repository:{storage}") is not None or recovery(settings, key)
        if not known and not operations.inforce.holds_repository(storage):
            raise NotFound(
                f"key {key}: there is no repository yet in storage {storage}",
                detail="A storage gets its repository with the first backup, or with the first recovery sheet.",
            )
        order = Order("recovery-test", {}, who, storage=storage, hidden={"identity": identity})
        result = await operations.runner.perform(order)
        tested.append({"storage": storage, **result})
    return {"ok": True, "key": key, "repositories": tested}


async def drop(operations: Operations, key: str, recipient: str, confirm: str, who: Who) -> Json:
    """Stop a recovery recipient, named in full or by its first characters, from opening the repositories.

    Raises NotFound, Held, ConfirmMissing.
    """
    settings = operations.catalog.settings
    everyone = recovery(settings, key)
    known = [name for name in everyone if name.startswith(recipient)]
    whole = known[0] if len(known) == 1 else recipient
    left = [name for name in everyone if name != whole]
    if whole in everyone and left and confirm not in (recipient, whole):  # the job itself asks about the last one
        tested = sum(settings.get(f"recovery_tested:{key}:{name}") is not None for name in left)
        raise ConfirmMissing(
            f"{whole}: whoever has its sheet no longer opens the backups, which cannot be undone",
            detail=f"Recovery keys that stay: {len(left)}, tested: {tested or 'none'}.",
            hints=[
                f"dbguardctl key recovery-test {key}",
                f"dbguardctl key recovery-drop {whole} {key} --confirm {whole}",
            ],
        )
    request = {"recipient": whole, "confirm": whole if confirm == recipient else confirm}
    dropped = []
    for storage in _storages(operations, key):
        result = await operations.runner.perform(Order("recovery-drop", request, who, storage=storage))
        dropped.append({"storage": storage, **result})
    return {"ok": True, "key": key, "repositories": dropped}


async def recover(operations: Operations, key: str, identity: str, who: Who) -> Json:
    """Let this machine's key open the repositories that the identity opens, and read them into the catalog.

    Raises NotFound, KeyRefused, KeyUnsafe.
    """
    opened = []
    for storage in _storages(operations, key):
        order = Order("recover", {}, who, storage=storage, hidden={"identity": identity})
        opened.append({"storage": storage, **await operations.runner.perform(order)})
        with suppress(Busy):  # it is being read now
            await operations.runner.perform(Order("scan", {}, who, storage=storage))
    return {"ok": True, "key": key, "repositories": opened}


def credentials(policy: Policy, environ: Mapping[str, str]) -> list[Json]:
    """Return each systemd credential that the policy names or that this process was given, and since when."""
    rows: dict[str, Json] = {}

    def row(name: str) -> Json:
        return rows.setdefault(name, {"name": name, "used_by": [], "given_at": None})

    for key, settings in policy.key.items():
        named = (settings.credential, settings.secret.credential if settings.secret else None)
        for name in filter(None, named):
            row(name)["used_by"].append(f"key {key}")
    # Without the directory, systemd did not start this process or gave it no credentials.
    with suppress(OSError), os.scandir(environ.get("CREDENTIALS_DIRECTORY", "")) as found:
        for entry in found:
            row(entry.name)["given_at"] = to_text(datetime.fromtimestamp(entry.stat().st_mtime, UTC))
    return [rows[name] for name in sorted(rows)]


def _storages(operations: Operations, key: str) -> list[str]:
    keys = operations.inforce.keyring()
    if key not in keys:
        known = f"Keys: {', '.join(keys)}."
        raise NotFound(f"{key}: no such key in the policy", detail=known, hints=["dbguardctl key list"])
    return keys[key] or operations.inforce.storages() or ["local"]
