"""What a handler receives and returns: a checked request, and a reply that knows no HTTP library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import field
from typing import IO, Any

from dbguardd.api.service import Actor, Json, Service
from dbguardd.frozen import frozen
from dbguardd.states import Role
from dbguardd.wire import Event


@frozen
class Ask:
    """One request whose peer has the required role, and all of whose parts were checked."""

    service: Service
    actor: Actor
    role: Role
    path: Mapping[str, str]  # the values of the {names} in the route
    query: Mapping[str, Any]  # every parameter of the route, typed
    body: Mapping[str, Any]  # every field of the route's request, typed
    headers: Mapping[str, str]  # read only those that the route documents
    finish: Callable[[Awaitable[Json]], Awaitable[Json]]  # runs on if the peer hangs up: for whatever changes state


@frozen
class Reply:
    """An answer with its own status or headers."""

    status: int
    content: Json
    headers: Mapping[str, str] = field(default_factory=dict)


@frozen
class Stream:
    """An answer without an end: server-sent events. None stands for a heartbeat."""

    events: AsyncIterator[Event | None]


@frozen
class Download:
    """An answer that consists of the bytes of a file, from its start. The file is closed when they are sent or fail."""

    file: IO[bytes]


@frozen
class Nothing:
    """A request without fields."""


@frozen
class Pause:
    """Stop the schedule of a database."""

    seconds: float | None = field(default=None, metadata={"help": "for how long; until resumed if not given"})


@frozen
class Hold:
    """Forbid the deletion of a backup."""

    reason: str = field(metadata={"help": "why, in words; shown wherever the backup is listed"})


@frozen
class Protect:
    """Detect a database, write its policy and reload."""

    path: str = field(metadata={"help": "the path or address of the database"})
    name: str = field(default="", metadata={"help": "what to call it; made from the path if not given"})
    dry_run: bool = field(default=False, metadata={"help": "show what would be written, and write nothing"})
    continuous: bool = field(default=False, metadata={"help": "follow its log, so that any second can be restored"})
    adopt: str = field(default="", metadata={"help": "the former database that it is: continue its backups"})
    confirm: str = field(default="", metadata={"help": "the same name again, if it does not look like that database"})


@frozen
class Unprotect:
    """Remove the policy of a database; its backups stay."""

    confirm: str = field(default="", metadata={"help": "the name of the database, typed in full"})
    dry_run: bool = field(default=False, metadata={"help": "show what would be removed, and remove nothing"})


@frozen
class RecoveryTest:
    """Prove that the copy on the recovery sheet opens the repositories."""

    identity: str = field(metadata={"help": "the secret on the recovery sheet, as typed"})


@frozen
class RecoveryDrop:
    """Stop a recovery recipient from opening the repositories."""

    recipient: str = field(metadata={"help": "the recipient, age1..., or its first characters"})
    confirm: str = field(default="", metadata={"help": "the same again, needed for the last one"})


@frozen
class Recover:
    """Let this machine open the repositories again, with the copy on the recovery sheet."""

    identity: str = field(metadata={"help": "the secret on the recovery sheet, as typed"})
