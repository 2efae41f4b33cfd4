"""What a handler gets and gives: an admitted request, a reply that knows no HTTP library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from dbguardd.api.service import Actor, Json, Service
from dbguardd.states import Role
from dbguardd.wire import Event


@dataclass(frozen=True, slots=True)
class Ask:
    """One request whose peer has the role for it, and of which every part was checked."""

    service: Service
    actor: Actor
    role: Role
    path: Mapping[str, str]  # what stands for the {names} of the route
    query: Mapping[str, Any]  # every parameter of the route, typed
    body: Mapping[str, Any]  # every field of the route's request, typed
    headers: Mapping[str, str]  # read only what the route documents
    finish: Callable[[Awaitable[Json]], Awaitable[Json]]  # goes on when the peer hangs up: for what changes things


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose status or headers are not the ordinary ones."""

    status: int
    content: Json
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that goes on: server-sent events. None stands for a heartbeat."""

    events: AsyncIterator[Event | None]


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that is the bytes of a file, from its start. It is closed when they are sent, or cannot be."""

    file: IO[bytes]


@dataclass(frozen=True, slots=True)
class Nothing:
    """No fields."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the schedule of a database."""

    seconds: float | None = field(default=None, metadata={"help": "for how long; until resumed if not given"})


@dataclass(frozen=True, slots=True)
class Hold:
    """Forbid the deletion of a backup."""

    reason: str = field(metadata={"help": "why, in words; shown wherever the backup is"})


@dataclass(frozen=True, slots=True)
class Protect:
    """Detect a database, write its policy and reload."""

    path: str = field(metadata={"help": "where the database lies"})
    name: str = field(default="", metadata={"help": "what to call it; made from the path if not given"})
    dry_run: bool = field(default=False, metadata={"help": "say what would be written, and write nothing"})
    continuous: bool = field(default=False, metadata={"help": "follow its log, so that any second can be restored"})
    adopt: str = field(default="", metadata={"help": "the database without a policy that it is, and has backups of"})
    confirm: str = field(default="", metadata={"help": "the same again, although it does not look like that one"})


@dataclass(frozen=True, slots=True)
class Unprotect:
    """Take the policy of a database away; its backups stay."""

    confirm: str = field(default="", metadata={"help": "the name of the database, typed in full"})
    dry_run: bool = field(default=False, metadata={"help": "say what would be removed, and remove nothing"})


@dataclass(frozen=True, slots=True)
class RecoveryTest:
    """Prove that the copy on the recovery sheet opens the repositories."""

    identity: str = field(metadata={"help": "the secret on the recovery sheet, as typed"})


@dataclass(frozen=True, slots=True)
class RecoveryDrop:
    """Let a recovery recipient open the repositories no longer."""

    recipient: str = field(metadata={"help": "the recipient, age1..., or its first characters"})
    confirm: str = field(default="", metadata={"help": "the same again, needed for the last one"})


@dataclass(frozen=True, slots=True)
class Recover:
    """Let this machine open the repositories again, by the copy on the recovery sheet."""

    identity: str = field(metadata={"help": "the secret on the recovery sheet, as typed"})
