"""The interface between the API and the daemon, which implements it; neither side imports the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import IO, Any, Protocol

from dbguardd.frozen import frozen
from dbguardd.states import Role
from dbguardd.wire import BackupRow, CoverageRow, Event, EventRange, ExpiredRow, JobRow, LogProof, Status

Json = dict[str, Any]


@frozen
class Actor:
    """The user behind a request, as the kernel reports it."""

    uid: int
    gid: int
    pid: int
    user: str
    groups: frozenset[int]


class Service(Protocol):
    """Every method raises only errors of dbguardd.errors; methods that change something write the audit log."""

    def role(self, actor: Actor) -> Role | None:
        """Return the role that the policy in force gives to this peer; None if it may not even read."""

    def denied(self, actor: Actor, action: str) -> None:
        """Record a refused request in the audit log."""

    async def look(self) -> None:
        """Measure storages and keys again, so that status() is up to date."""

    def status(self) -> Status: ...

    def backups(self, database: str) -> list[BackupRow]:
        """Return the backups of one database, newest first, with what keeps each. Raises NotFound."""

    def coverage(self, database: str) -> tuple[list[CoverageRow], LogProof | None]:
        """Return the time ranges to which a database can be restored, oldest first, and the proof of its log."""

    def expired(self, database: str) -> list[ExpiredRow]:
        """Return the backups that have expired and are not deleted yet, newest first."""

    def show(self, id: str) -> Json:
        """Return one backup, job or database in full, by its id, the first characters of the id, or its name."""

    def submit(self, verb: str, fields: Mapping[str, Any], actor: Actor, idempotency_key: str | None) -> JobRow:
        """Queue a job; the same key from the same uid returns the same job. Raises Usage, NotFound, Busy."""

    async def wait(self, job: str, seconds: float) -> JobRow:
        """Return the job when it has ended, or its state after `seconds`."""

    def jobs(self, database: str | None, state: str | None, limit: int) -> list[JobRow]: ...

    def job(self, id: str) -> JobRow: ...

    def answer(self, id: str, actor: Actor) -> IO[bytes]:
        """Return the answer to a question, once, to the user who asked. Raises NotFound."""

    def cancel(self, id: str, actor: Actor) -> JobRow: ...

    def events(self, asked: EventRange, limit: int, last: bool) -> list[Event]:
        """Return the first or the last events of a range, oldest first. Raises Usage for an invalid moment."""

    def follow(self, after: int, database: str | None, job: str | None) -> AsyncIterator[Event | None]:
        """Yield events after that id as they occur, and None from time to time if there are none (a heartbeat)."""

    def pause(self, database: str, seconds: float | None, actor: Actor) -> Json: ...

    def resume(self, database: str, actor: Actor) -> Json: ...

    async def hold(self, backup: str, reason: str, actor: Actor) -> Json: ...

    async def release(self, backup: str, actor: Actor) -> Json: ...

    async def recall(self, backup: str, actor: Actor) -> Json: ...

    def schedule(self, count: int) -> Json: ...

    async def reload(self, actor: Actor) -> Json: ...

    async def protect(self, fields: Mapping[str, Any], actor: Actor) -> Json: ...

    async def unprotect(self, database: str, fields: Mapping[str, Any], actor: Actor) -> Json: ...

    def config(self, origin: bool) -> Json: ...

    def config_check(self) -> Json: ...

    def config_diff(self) -> Json: ...

    async def config_accept(self, actor: Actor) -> Json: ...

    def config_explain(self, key: str) -> Json: ...

    def config_schema(self) -> Json: ...

    def keys(self) -> Json: ...

    def credentials(self) -> Json: ...

    async def recovery_sheet(self, key: str, actor: Actor) -> Json: ...

    async def recovery_test(self, key: str, identity: str, actor: Actor) -> Json: ...

    async def recovery_drop(self, key: str, recipient: str, confirm: str, actor: Actor) -> Json: ...

    async def recover(self, key: str, identity: str, actor: Actor) -> Json: ...

    async def audit(self, after: int, limit: int) -> Json: ...

    async def audit_verify(self) -> Json: ...
