"""Recovery keys: making one, and proving that one opens the repositories."""

from __future__ import annotations

from typing import Any

from dbguardd.catalog import Who
from dbguardd.daemon.live import Order
from dbguardd.daemon.operations import Operations
from dbguardd.errors import NotFound, Unsupported

Json = dict[str, Any]


async def make_sheet(operations: Operations, key: str, who: Who) -> Json:
    """Make a recovery identity, let it open the repository, return it once. Raises NotFound, Unsupported."""
    storages = _storages(operations, key)
    if len(storages) > 1:
        raise Unsupported(
            f"key {key}: opens {len(storages)} storages, a sheet is made for one",
            detail="Make an age identity off this machine and name its recipient in the policy: it opens all of them.",
            hints=["age-keygen", f'[key.{key}] recovery = ["age1..."]'],
        )
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
        "sheet_text": recovery_sheet(identity, recipient, host=host, made_at=now, repositories=places, **marks),
        "qr_svg": qr_svg(identity),
    }


async def try_identity(operations: Operations, key: str, identity: str, who: Who) -> Json:
    """Open every repository of the key with the identity, as after a disaster. Raises NotFound, KeyRefused."""
    tested = []
    for storage in _storages(operations, key):
        order = Order("recovery-test", {}, who, storage=storage, hidden={"identity": identity})
        result = await operations.runner.perform(order)
        tested.append({"storage": storage, **result})
    return {"ok": True, "key": key, "repositories": tested}


def _storages(operations: Operations, key: str) -> list[str]:
    keys = operations.inforce.keyring()
    if key not in keys:
        raise NotFound(f"{key}: no such key in the policy", detail=f"Keys: {', '.join(keys)}.")
    return keys[key] or ["local"]
