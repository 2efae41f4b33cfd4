"""Every route of the API in one table. Roles, 404, 405 and the OpenAPI description derive from it.

A route names the least role that may use it; where the request decides (a restore in place, a deletion that is not a
dry run), `stricter` returns the role for its fields. Handlers take an Ask and return JSON, a Reply, a Stream or a
Download.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from typing import Any

from dbguardd import requests, wire
from dbguardd.api import ask as bodies
from dbguardd.api import handlers as do
from dbguardd.api.ask import Ask, Download, Reply, Stream
from dbguardd.api.openapi import describe
from dbguardd.api.service import Json
from dbguardd.api.strict import Param
from dbguardd.frozen import frozen
from dbguardd.states import JobState, Role

Answer = Json | Reply | Stream | Download
READ, OPERATE, ADMIN = Role.READ, Role.OPERATE, Role.ADMIN


@frozen
class Route:
    """One row: method, path and role, the handler, and the shapes of request and answer."""

    method: str
    path: str  # segments; one in braces matches any segment
    role: Role
    handler: Callable[[Ask], Answer | Awaitable[Answer]]
    answer: str  # the answer's schema is dbguard.ANSWER/1; "" for a document that has its own schema
    members: Mapping[str, Any] | type = field(default_factory=dict)  # of the answer, if the API knows them
    body: type | None = None  # the dataclass of the request; GET has none
    query: tuple[Param, ...] = ()
    verb: str = ""  # of the job that the route starts
    stricter: Callable[[Mapping[str, Any]], Role] | None = None

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the values of the names in braces, or None if the path does not match."""
        parts = self.path.removeprefix("/").split("/")
        if len(parts) != len(segments):
            return None
        found = {"verb": self.verb} if self.verb else {}
        for part, segment in zip(parts, segments, strict=True):
            if part.startswith("{"):
                found[part[1:-1]] = segment
            elif part != segment:
                return None
        return found


def _unless_dry(fields: Mapping[str, Any]) -> Role:
    return OPERATE if fields["dry_run"] else ADMIN


def _in_place(fields: Mapping[str, Any]) -> Role:
    return ADMIN if fields["in_place"] and not fields["dry_run"] else OPERATE


def _openapi(ask: Ask) -> Json:
    """Return this description."""
    return describe(ROUTES)


_WAIT = Param("wait", float, "seconds to wait for the end of the job", 0.0, 0, 600)
_JOB = {"job": wire.JobRow}
_BACKUPS = {
    **{"database": str, "backups": list[wire.BackupRow], "expired": list[wire.ExpiredRow]},
    **{"log": list[wire.CoverageRow], "log_proof": wire.LogProof | None},
}
_DATABASE = Param("database", str, "only of this database")
_AFTER = Param("after", int, "only what came after this id", 0, 0)
_LIMIT = Param("limit", int, "at most so many", 100, 1, 10_000)
_STATES = tuple(str(state) for state in JobState)


def _starts(verb: str, role: Role = OPERATE, stricter: Callable[[Mapping[str, Any]], Role] | None = None) -> Route:
    """Return the row of a job: all have the same form, and take the request in requests.REQUESTS."""
    path, body = f"/v1/jobs/{verb}", requests.REQUESTS[verb]
    return Route("POST", path, role, do.submit, "job", _JOB, body, query=(_WAIT,), verb=verb, stricter=stricter)


# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/status", READ, do.status, "status", wire.Status),
    Route("GET", "/v1/databases/{name}/backups", READ, do.backups, "list", _BACKUPS, query=(
        Param("all", bool, "every one and those that expired, not only the newest twenty", True),
        Param("why", bool, "say what keeps each", True),
    )),
    Route("GET", "/v1/show/{id}", READ, do.show, "show", {"kind": str}),
    _starts("backup"),
    _starts("verify"),
    _starts("restore", stricter=_in_place),
    _starts("undo", ADMIN),
    _starts("check"),
    _starts("expire", stricter=_unless_dry),
    _starts("sweep", stricter=_unless_dry),
    _starts("query"),
    _starts("get"),
    _starts("diff"),
    _starts("undelete"),
    Route("GET", "/v1/jobs", READ, do.jobs, "jobs", {"jobs": list[wire.JobRow]}, query=(
        _DATABASE, Param("state", str, "only in this state", choices=_STATES), _LIMIT,
    )),
    Route("GET", "/v1/jobs/{id}", READ, do.job, "job", _JOB, query=(_WAIT,)),
    Route("GET", "/v1/jobs/{id}/answer", OPERATE, do.answer, ""),
    Route("POST", "/v1/jobs/{id}/cancel", OPERATE, do.cancel, "job", _JOB, bodies.Nothing),
    Route("GET", "/v1/events", READ, do.events, "events", {"events": list[wire.Event]}, query=(
        _AFTER, Param("before", int, "only what came before this id", low=1),
        Param("since", str, "only what happened at this moment or later"),
        Param("until", str, "only what happened before this moment"),
        _DATABASE, Param("job", str, "only of this job"), _LIMIT,
        Param("last", bool, "the last so many, instead of the first", False),
    )),
    Route("POST", "/v1/databases/{name}/pause", OPERATE, do.pause, "pause", body=bodies.Pause),
    Route("POST", "/v1/databases/{name}/resume", OPERATE, do.resume, "resume", body=bodies.Nothing),
    Route("POST", "/v1/backups/{id}/hold", ADMIN, do.hold, "hold", body=bodies.Hold),
    Route("POST", "/v1/backups/{id}/release", ADMIN, do.release, "release", body=bodies.Nothing),
    Route("POST", "/v1/backups/{id}/recall", ADMIN, do.recall, "recall", body=bodies.Nothing),
    Route("GET", "/v1/schedule", READ, do.schedule, "schedule", query=(
        Param("next", int, "how many runs ahead", 10, 1, 1000),
    )),
    Route("POST", "/v1/reload", ADMIN, do.reload, "reload", body=bodies.Nothing),
    Route("POST", "/v1/protect", ADMIN, do.protect, "protect", body=bodies.Protect),
    Route("POST", "/v1/databases/{name}/unprotect", ADMIN, do.unprotect, "unprotect", body=bodies.Unprotect),
    Route("GET", "/v1/config", READ, do.config, "config", query=(
        Param("origin", bool, "say where each value comes from", False),
    )),
    Route("POST", "/v1/config/check", READ, do.config_check, "config_check", body=bodies.Nothing),
    Route("GET", "/v1/config/diff", READ, do.config_diff, "config_diff"),
    Route("POST", "/v1/config/accept", ADMIN, do.config_accept, "config_accept", body=bodies.Nothing),
    Route("GET", "/v1/config/explain", READ, do.config_explain, "config_explain", query=(
        Param("key", str, "the dotted name of a setting"),
    )),
    Route("GET", "/v1/config/schema", READ, do.config_schema, ""),
    Route("GET", "/v1/keys", READ, do.keys, "keys"),
    Route("GET", "/v1/credentials", READ, do.credentials, "credentials"),
    Route("POST", "/v1/keys/{name}/recovery-sheet", ADMIN, do.recovery_sheet, "recovery_sheet", body=bodies.Nothing),
    Route("POST", "/v1/keys/{name}/recovery-test", ADMIN, do.recovery_test, "recovery_test", body=bodies.RecoveryTest),
    Route("POST", "/v1/keys/{name}/recovery-drop", ADMIN, do.recovery_drop, "recovery_drop", body=bodies.RecoveryDrop),
    Route("POST", "/v1/keys/{name}/recover", ADMIN, do.recover, "recover", body=bodies.Recover),
    Route("GET", "/v1/audit", READ, do.audit, "audit", query=(_AFTER, _LIMIT)),
    Route("POST", "/v1/audit/verify", READ, do.audit_verify, "audit_verify", body=bodies.Nothing),
    Route("GET", "/v1/openapi.json", READ, _openapi, ""),
)
# fmt: on
"""The whole API, in the order of its description."""


def find(method: str, segments: list[str]) -> tuple[Route, dict[str, str]] | set[str]:
    """Return the route and its names, or the methods that the path allows: none if there is no such path."""
    allowed: set[str] = set()
    for route in ROUTES:
        names = route.match(segments)
        if names is not None:
            if route.method == method:
                return route, names
            allowed.add(route.method)
    return allowed
