"""Every route answers, with its schema, to those who may."""

import time

import pytest

from dbguardd.api import Limits
from dbguardd.api.routes import ROUTES
from dbguardd.requests import REQUESTS
from dbguardd.states import Role
from tests.api.conftest import BACKUP

BODIES = {
    "/v1/protect": {"path": "/srv/app.db"},
    "/v1/backups/{id}/hold": {"reason": "audit"},
    "/v1/keys/{name}/recovery-drop": {"recipient": "age1x"},
    "/v1/keys/{name}/recovery-test": {"identity": "AGE-SECRET-KEY-1"},
    "/v1/keys/{name}/recover": {"identity": "AGE-SECRET-KEY-1"},
    **{f"/v1/jobs/{verb}": {"storage" if verb == "sweep" else "database": "app"} for verb in REQUESTS},
    "/v1/jobs/query": {"database": "app", "sql": "select 1"},
}


def concrete(route):
    path = route.path.replace("{name}", "app").replace("{id}", "j1")
    return path + ("?key=database.app.keep" if route.path.endswith("/explain") else "")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_answers(api, route):
    api.ask("POST", "/v1/jobs/backup", {"database": "app"})
    answer = api.ask(route.method, concrete(route), BODIES.get(route.path, {}) if route.method == "POST" else None)
    if route.path.endswith("/release"):
        assert (answer.status, answer.content["code"]) == (409, "DBG-7001")
        return
    assert answer.status == (202 if route.verb else 200), answer.content
    if route.path.endswith("/answer"):
        assert (answer.headers["Content-Type"], answer.content) == ("application/octet-stream", [1])
        return
    assert answer.headers["Content-Type"] == "application/json"
    if route.answer:
        assert answer.content["schema"] == f"dbguard.{route.answer}/1"


ORDER = [None, Role.READ, Role.OPERATE, Role.ADMIN]


@pytest.mark.parametrize("role", ORDER, ids=str)
def test_a_role_may_what_the_table_says_and_nothing_more(api, me, role):
    api.ask("POST", "/v1/jobs/backup", {"database": "app"})
    for route in ROUTES:
        body = BODIES.get(route.path, {}) if route.method == "POST" else None
        api.store.role_now, api.store.refused = role, []
        needed = route.role
        if route.stricter is not None and "dry_run" in body_fields(route):
            needed = Role.OPERATE if route.verb == "restore" else Role.ADMIN
        answer = api.ask(route.method, concrete(route), body)
        if ORDER.index(role) >= ORDER.index(needed):
            assert answer.status != 403, route
            assert api.store.refused == []
        else:
            assert answer.status == 403, route
            assert answer.content["code"] == "DBG-0003"
            assert api.store.refused == [(me, f"{route.method} {concrete(route).split('?')[0]}")]


def body_fields(route):
    return {} if route.body is None else route.body.__dataclass_fields__


@pytest.mark.parametrize(
    ("verb", "fields", "needed"),
    [
        ("restore", {"in_place": True, "confirm": "app"}, Role.ADMIN),
        ("restore", {"in_place": True, "dry_run": True}, Role.OPERATE),
        ("restore", {"to": "/srv/look.db"}, Role.OPERATE),
        ("expire", {}, Role.ADMIN),
        ("expire", {"dry_run": True}, Role.OPERATE),
        ("undo", {"confirm": "app"}, Role.ADMIN),
    ],
)
def test_the_request_decides_how_much_role_it_needs(api, verb, fields, needed):
    for role in (Role.READ, Role.OPERATE, Role.ADMIN):
        api.store.role_now = role
        answer = api.ask("POST", f"/v1/jobs/{verb}", {"database": "app", **fields})
        assert (answer.status == 202) == (ORDER.index(role) >= ORDER.index(needed)), (role, answer.content)


def test_a_refusal_is_the_same_whether_the_object_exists(api):
    api.store.role_now = None
    there, missing = (api.ask("GET", f"/v1/databases/{name}/backups") for name in ("app", "nix"))
    nowhere = api.ask("GET", "/v1/nix")
    assert there.status == missing.status == nowhere.status == 403
    for answer in (there, missing):
        answer.content.pop("instance")
        answer.content["detail"] = answer.content["detail"].replace("nix", "app")
    assert there.content == missing.content
    api.store.role_now = Role.READ
    for job in ("j1", "nix"):
        assert api.ask("POST", f"/v1/jobs/{job}/cancel").status == 403
    assert api.store.calls == []


def test_every_verb_has_a_route():
    assert {route.verb for route in ROUTES if route.verb} == set(REQUESTS)


def test_unknown_paths_and_methods(api):
    lost = api.ask("GET", "/v1/statsu")
    assert (lost.status, lost.content["code"]) == (404, "DBG-0004")
    assert 'did you mean "/v1/status"?' in lost.content["message"]
    assert api.ask("GET", "/v1/status/").status == 404
    assert api.ask("GET", "/").status == 404
    wrong = api.ask("DELETE", "/v1/status")
    assert (wrong.status, wrong.headers["Allow"], wrong.content["status"]) == (405, "GET", 405)
    assert api.ask("POST", "/v1/jobs/bakcup", {}).status == 405  # GET /v1/jobs/{id} has that path


def test_the_answers_carry_what_the_service_said(api, me):
    rows = api.ask("GET", "/v1/databases/app/backups").content["backups"]
    assert [row["id"] for row in rows] == ["01J2", "01J1"]
    assert rows[1]["kept_because"] == ["last"]
    plain = api.ask("GET", "/v1/databases/app/backups?why=false").content["backups"]
    assert [(row["id"], row["kept_because"]) for row in plain] == [("01J2", []), ("01J1", [])]
    api.store.listed = [BACKUP] * 30
    assert len(api.ask("GET", "/v1/databases/app/backups").content["backups"]) == 30
    assert len(api.ask("GET", "/v1/databases/app/backups?all=false").content["backups"]) == 20
    gone = api.ask("GET", "/v1/databases/a%2Fpp/backups")
    assert (gone.status, gone.content["message"]) == (404, "a/pp: no such database")
    assert gone.content["instance"] == "/v1/databases/a%2Fpp/backups"
    assert gone.headers["Content-Type"] == "application/problem+json"
    assert api.store.actors[-1].uid == me
    busy = api.ask("POST", "/v1/jobs/backup", {"database": "busy"})
    assert (busy.status, busy.content["job"], busy.content["retryable"]) == (409, "j9", True)


def test_the_same_key_gives_the_same_job(api):
    first, again = (
        api.ask("POST", "/v1/jobs/backup", {"database": "app"}, Idempotency_Key="k1").content["job"]["id"]
        for _ in range(2)
    )
    other = api.ask("POST", "/v1/jobs/backup", {"database": "app"}, Idempotency_Key="k2").content["job"]["id"]
    assert first == again != other
    assert api.ask("POST", "/v1/jobs/backup", {"database": "app"}, Idempotency_Key="k" * 256).status == 400


def test_defaults_are_filled_in(api):
    api.ask("POST", "/v1/jobs/backup", {"database": "app", "full": True})
    filled = {"database": "app", "full": True, "verify": False, "note": "", "successor": False}
    assert api.store.calls == [("submit", "backup", filled, None)]
    api.ask("POST", "/v1/databases/app/pause", {})
    api.ask("POST", "/v1/databases/app/pause", {"seconds": 60})
    assert api.store.calls[1:] == [("pause", "app", None), ("pause", "app", 60)]
    for seconds in (0, 1e12):
        assert api.ask("POST", "/v1/databases/app/pause", {"seconds": seconds}).status == 400


def test_waiting_is_202_while_it_runs_and_200_when_it_ended(api):
    body = {"database": "app"}
    running = api.ask("POST", "/v1/jobs/backup?wait=0.05", body)
    assert (running.status, running.content["job"]["state"]) == (202, "queued")
    assert running.headers["Location"] == "/v1/jobs/j1"
    api.store.ended.set()
    ended = api.ask("POST", "/v1/jobs/backup?wait=600", body)
    assert (ended.status, ended.content["job"]["state"]) == (200, "done")
    assert api.ask("GET", "/v1/jobs/j1?wait=5").content["job"]["result"] == {"backup": "01J1"}


def test_a_bug_says_so_and_nothing_else(api, caplog):
    answer = api.ask("GET", "/v1/show/bug")
    assert (answer.status, answer.content["code"]) == (500, "DBG-0008")
    assert "hunter2" not in str(answer.content)
    assert "Traceback" not in str(answer.content)
    assert "hunter2" in caplog.text


def test_what_is_no_json_is_a_bug_and_what_is_no_text_is_escaped(api):
    assert api.ask("GET", "/v1/show/nan").content["code"] == "DBG-0008"
    assert api.ask("GET", "/v1/show/bytes").content["path"] == "/srv/\udcff.db"


def test_refusals_cannot_be_made_faster_than_they_are_written(start):
    api = start(Limits(denied_seconds=0.1))
    api.store.role_now = None
    began = time.monotonic()
    assert api.ask("GET", "/v1/status").status == 403
    assert time.monotonic() - began >= 0.1
