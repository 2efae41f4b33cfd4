"""What a reload changes in a running daemon, and what it refuses."""

import pytest

from tests.process.house import House, add, far, held, rows, until

CALM = ('verify = "off"', 'expire = "off"')


def test_a_bad_policy_is_refused_and_the_old_one_stays(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.policy.write_text(house.policy.read_text() + 'keep = { last = "many" }\nbackup = "daily 25:00"\n')
    lines = house.policy.read_text().splitlines()
    places = [f"{house.policy}:{lines.index(line) + 1}:" for line in lines[-2:]]

    said = house.ctl("reload")
    assert said.status == 9
    for words in (*places, "DBG-1001", "25:00", "--check-config"):
        assert words in said.err
    status = house.api.get("status")
    assert [row["name"] for row in status["databases"]] == ["app"]
    assert all(place in status["policy_problem"]["detail"] for place in places)
    shown = house.ctl("status")
    assert shown.status == 3
    assert "policy has mistakes" in shown.out
    assert all(place in shown.out for place in places), shown.out
    assert house.does("backup", "app")["proof"]["grade"] == "proven"  # work goes on by the old one

    house.protects(house.table("app"))
    house.does("reload")
    assert house.api.get("status")["policy_problem"] is None
    outcomes = [(e["action"], e["outcome"]) for e in house.audit() if e["action"] == "policy.reload"]
    assert outcomes == [("policy.reload", end) for end in ("intent", "failed", "intent", "done")]


def test_a_policy_that_others_can_write_is_not_trusted(house: House) -> None:
    house.start()
    house.policy.chmod(0o666)
    problem = house.fails("DBG-1003", 9, "reload")
    assert str(house.policy) in problem["message"] + problem["detail"]


def test_a_goal_that_cannot_be_met_is_told_by_the_reload(house: House) -> None:
    house.start()
    house.protects(house.table("app", 'backup = "daily 01:00"', 'objective = { rpo = "1h" }', *CALM))
    (warning,) = [row for row in house.does("reload")["warnings"] if row["code"] == "config/rpo"]
    said = house.ctl("reload")
    assert said.status == 0
    assert "rpo 1h cannot be met" in said.out and f"--> {house.policy}:{warning['line']}:" in said.out
    place = f"{house.policy}:{warning['line']}"
    assert next(one for one in house.events("policy.warned") if one["place"] == place)["problem"] == warning["message"]


def test_databases_come_change_and_go(house: House) -> None:
    for name in ("old", "new"):
        house.database(name)
    old = house.table("old", f'backup = "{far(8)}"', *CALM)
    house.protects(old)
    house.start()
    made = house.does("backup", "old")["backup"]["id"]
    first = house.status("old")["next_run_at"]

    soon = far(4)
    house.protects(house.table("old", f'backup = "{soon}"', *CALM), house.table("new", *CALM))
    assert set(house.does("reload")["databases"]) == {"old", "new"}
    assert house.status("old")["next_run_at"] < first
    runs = house.does("schedule", "--next", "20")["runs"]
    assert {run["schedule"] for run in runs if run["database"] == "old"} == {soon}
    assert {run["database"] for run in runs} == {"old", "new", None}
    house.does("backup", "new")

    house.protects(house.table("new", *CALM))
    house.does("reload")
    assert house.status("old")["state"] == "orphaned"
    assert [row["id"] for row in house.backups("old")] == [made]
    assert "old" not in {run["database"] for run in house.does("schedule", "--next", "20")["runs"]}
    house.fails("DBG-0004", 8, "backup", "old")
    assert house.ctl("prune", "old").status == 2
    house.does("restore", "old", "--to", str(house.place / "again.db"))  # what it has can still be had
    assert rows(house.place / "again.db") == 50
    house.stop()
    house.start()
    assert house.status("old")["state"] == "orphaned"
    house.is_sound()


def test_a_running_job_goes_on_by_what_it_began_with(house: House) -> None:
    path = house.database("app")
    house.protects(house.table("app", 'lock_timeout = "1h"', *CALM))
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        house.protects()
        house.does("reload")
    assert house.ended(job)["state"] == "done"
    assert len(house.backups("app")) == 1


@pytest.mark.parametrize("while_down", [False, True])
def test_a_policy_that_deletes_waits_for_a_yes(house: House, while_down: bool) -> None:
    path = house.database("app")
    house.protects(house.table("app", "keep = { last = 5 }", "min_proven = 1"))
    house.start()
    for _ in range(4):
        add(path)
        house.does("backup", "app")
        house.idle()
    ids = [row["id"] for row in house.backups("app")]
    assert len(ids) == 4

    house.protects(house.table("app", "keep = { last = 2 }", "min_proven = 1"))
    if while_down:
        house.stop()
        house.start()
    else:
        problem = house.fails("DBG-1002", 10, "reload")
        assert sorted(problem["databases"]["app"]) == sorted(ids[2:])
    assert house.api.get("status")["policy_problem"]["code"] == "DBG-1002"
    assert {row["id"] for row in house.does("config", "diff")["deletes"]} == set(ids[2:])
    add(path)
    new = house.does("backup", "app")["backup"]["id"]
    house.idle()
    assert [row["id"] for row in house.backups("app")] == [new, *ids]  # nothing went, not even after a backup

    house.does("config", "accept")
    assert house.api.get("status")["policy_problem"] is None
    assert house.ctl("prune", "app", "--confirm", "app").status == 0
    assert [row["id"] for row in house.backups("app")] == [new, ids[0]]
    (accepted,) = [e for e in house.audit() if e["action"] == "policy.accept" and e["outcome"] == "intent"]
    assert set(accepted["facts"]["deletes"]) == set(ids[1:])
    house.is_sound()
