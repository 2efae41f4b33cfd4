"""The service in the hands of an administrator: restarted under those who ask, stopped, replaced by hand."""

import json
import threading

import pytest

from tests.packaging import trees
from tests.packaging.applications import application, held
from tests.process.house import until

POLICY = """
[database.desk]
engine = "sqlite"
path = "/var/lib/desk/desk.db"
lock_timeout = "1h"
verify = "off"
missed = "skip"
retry = { times = 0 }
"""
WORKERS = """
import json, os
found = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{name}/cmdline").read().split("\\0")
        if "dbguardd.worker" in words:
            found[words[words.index("dbguardd.worker") + 1]] = {
                "pid": int(name),
                "nice": os.getpriority(os.PRIO_PROCESS, int(name)),
                "oom_score_adj": int(open(f"/proc/{name}/oom_score_adj").read()),
                "group": open(f"/proc/{name}/cgroup").read().strip().splitlines()[-1].rpartition("/")[2],
            }
    except OSError:
        continue
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def unlimited(machine):
    """Have systemd forget before and after each test how often the service was started."""
    forget(machine)
    yield
    forget(machine)


def forget(machine):
    """Keep restarts that are meant from looking like those of a service that fails all the time."""
    machine.run("systemctl", "reset-failed", "dbguardd.service", "dbguardd.socket")


@pytest.fixture
def desk(machine):
    """A protected database; a backup of it waits for as long as a lock is held."""
    path = application(machine, "desk")
    machine.put(POLICY, "/etc/dbguard/conf.d/desk.toml", owner="dbguard")
    machine.does("reload")
    yield path
    machine.run("systemctl", "start", "dbguardd")
    machine.until_active()
    machine.run("rm", "-f", "/etc/dbguard/conf.d/desk.toml")
    machine.does("reload")


def test_nobody_who_asks_during_restarts_is_refused(machine):
    done, refused = threading.Event(), []

    def ask():
        while not done.is_set():
            said = machine.ctl("status")
            if said.status not in (0, 3):
                refused.append(said)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(5):
            before = machine.show("MainPID")
            forget(machine)
            machine.run("systemctl", "restart", "dbguardd")
            assert machine.show("MainPID") not in (before, "0")
    finally:
        done.set()
        for thread in asking:
            thread.join()
    assert not refused


def test_who_asks_while_there_is_no_socket_is_told_that_it_waits(machine):
    """The moment in which the socket is away, made as long as it takes to see."""
    hold = "while ! test -e /run/go-on; do sleep 0.05; done"
    drop_in = machine.put(f"[Socket]\nExecStartPre=/bin/sh -c '{hold}'\n",
                          "/run/systemd/system/dbguardd.socket.d/slow.conf")  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    try:
        machine.run("systemctl", "restart", "--no-block", "dbguardd")
        until(lambda: machine.show("ActiveState", "dbguardd.socket") == "activating", machine.why)
        for words, user in ((("status",), "daemon"), (("reload",), "root")):
            machine.run("rm", "-f", "/run/go-on")
            if machine.show("ActiveState", "dbguardd.socket") != "activating":
                machine.run("systemctl", "restart", "--no-block", "dbguardd")
                until(lambda: machine.show("ActiveState", "dbguardd.socket") == "activating", machine.why)
            with machine.starting("dbguardctl", *words, user=user) as asking:
                assert asking.stderr.readline() == "dbguardd is being restarted: waiting for it\n"
                machine.run("touch", "/run/go-on")
                out, err = asking.communicate()
            assert "cannot reach" not in err
            assert asking.returncode in ((0, 3) if user == "root" else (5,)), (out, err)  # daemon has no role
    finally:
        machine.run("touch", "/run/go-on")
        machine.run("rm", drop_in)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "dbguardd")
        machine.until_active()


def test_a_stopped_service_is_not_started_by_who_knocks(machine):
    machine.run("systemctl", "stop", "dbguardd")
    try:
        for user in ("root", "daemon"):
            said = machine.ctl("--json", "status", user=user)
            assert said.problem()["code"] == "DBG-0002"
            assert said.problem()["hints"] == ["systemctl start dbguardd", "systemctl status dbguardd"]
        assert machine.show("ActiveState") == "inactive"
        assert machine.show("ActiveState", "dbguardd.socket") == "inactive"
    finally:
        machine.run("systemctl", "start", "dbguardd")
        machine.until_active()


def test_it_is_started_again_for_as_long_as_it_takes(machine):
    """A state directory that is full at a boot, for example, has room again after more starts than systemd allows."""
    drop_in = machine.put("[Service]\nExecStartPre=/bin/false\nRestartSec=50ms\n",
                          "/run/systemd/system/dbguardd.service.d/failing.conf")  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    starts = set()  # NRestarts begins anew whenever the socket has the service started
    try:
        machine.run("systemctl", "restart", "dbguardd", check=False)
        until(lambda: starts.add(machine.show("InvocationID")) or len(starts) > 20, machine.why)
    finally:
        machine.run("rm", drop_in)
        machine.run("systemctl", "daemon-reload")
    machine.until_active()


@trees.ONE_SUITE
def test_root_runs_a_job_by_hand_as_the_service_would(machine, desk):
    machine.run("systemctl", "stop", "dbguardd")
    assert ": ok, " in machine.run("dbguardd", "--check-config", check=False).out  # and a warning: it is never proven
    said = machine.run("dbguardd", "run", "backup", "desk", "--verify")
    assert "proven" in said.out, said
    machine.run("dbguardd", "run", "restore", "desk", "--to", "/var/lib/desk/back.db")
    assert machine.run("stat", "--format=%U %a", "/var/lib/desk/back.db").out == "desk 600\n"
    assert machine.run("find", "/var/lib/dbguard", "!", "-user", "dbguard").out == ""
    machine.run("systemctl", "start", "dbguardd")
    machine.until_active()
    assert machine.does("backup", "desk")["backup"]["kind"] == "incremental"


@trees.ONE_SUITE
def test_workers_give_way_and_are_the_first_to_go(machine, desk):
    """One that is killed, as by the kernel when memory runs out, is one failed job and no dead service."""
    shown = {name: machine.show(name) for name in ("CPUWeight", "IOWeight", "OOMPolicy")}
    assert shown == {"CPUWeight": "20", "IOWeight": "50", "OOMPolicy": "continue"}
    daemon = machine.show("MainPID")
    with held(machine, desk, "desk"):
        job = machine.ctl("backup", "desk", "--no-wait").out.strip()
        until(lambda: machine.job(job)["step"] == "snapshot", machine.why)
        workers = json.loads(machine.python(WORKERS))
        assert set(workers) == {"engine", "repository"}
        for row in workers.values():
            assert (row["nice"], row["oom_score_adj"], row["group"]) == (10, 500, "dbguardd.service")
        weight = machine.path("/sys/fs/cgroup/system.slice/dbguardd.service/cpu.weight")
        if weight.exists():  # not where the controller belongs to a hierarchy of version 1
            assert weight.read_text() == "20\n"
        machine.python("import os, sys; os.kill(int(sys.argv[1]), 9)", str(workers["engine"]["pid"]))
        until(lambda: machine.job(job)["state"] == "failed", machine.why)
    assert (machine.show("MainPID"), machine.show("ActiveState")) == (daemon, "active")
    assert machine.does("backup", "desk")["job"]["state"] == "done"
