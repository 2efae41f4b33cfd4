"""dbguard-recovery(7), typed on two machines: one is lost, the other goes on with its storage and a sheet of paper."""

import re
import shutil

from tests.docs.pages import blocks, roff, section
from tests.packaging import trees
from tests.packaging.applications import application, count, rights
from tests.packaging.machine import booted
from tests.process.house import until


def steps(title):
    """The blocks to type under a heading of the page."""
    return [block.strip() for block in blocks(section(roff("dbguard-recovery.7"), title))]


@trees.ONE_SUITE
def test_a_lost_machine(machine, deb, suite, tmp_path):
    path = application(machine, "app")
    machine.does("protect", path)
    sheet = machine.does("key", "recovery-sheet", "main")
    assert machine.ctl("key", "recovery-test", "main", stdin=sheet["identity"]).status == 0
    before = rights(machine, path)
    shutil.copytree(machine.path("/var/lib/dbguard/store"), tmp_path / "copy")
    machine.run("rm", "/etc/dbguard/conf.d/app.toml")
    machine.does("reload")

    place = tmp_path / "other"
    place.mkdir()
    with booted(trees.tree(suite, trees.MACHINE), suite, place) as other:
        other.run("useradd", "--system", "--no-create-home", "--uid", "777", "app")
        other.install(deb)
        other.until_active()
        shutil.copytree(tmp_path / "copy", other.path("/mnt/copy"))
        copy, policy, reload, recover, status, restore, protect = steps("THE MACHINE IS LOST")
        other.run("sh", "-ec", copy)
        shipped = other.path("/etc/dbguard/policy.toml")
        shipped.write_text(f"{shipped.read_text()}\n{policy}\n")
        other.run("sh", "-ec", reload)
        until(lambda: "dbguardctl key recover main" in other.ctl("status").out, other.why)
        other.run("sh", "-ec", recover, stdin=sheet["identity"].lower())
        assert len(other.does("list", "app")["backups"]) == 1
        assert "orphaned" in other.run("sh", "-c", status).out
        other.run("install", "-d", "-o", "app", "-m", "0700", "/srv/restored", "/var/lib/app")
        said = other.run("sh", "-c", restore, check=False)
        assert count(other, "/srv/restored/app.db") == 500
        assert rights(other, "/srv/restored/app.db")["mode"] == before["mode"]
        if said.status:  # the daemon does not know whose it was, and may give nothing away: it says so
            assert re.search(r"owner and rights +FAIL +.*owner app", said.out), said
        other.run("sh", "-c", "mv /srv/restored/app.db /var/lib/app/app.db && chown app: /var/lib/app/app.db")
        refused = other.ctl("--json", "protect", "/var/lib/app/app.db").problem()
        assert refused["hints"][0].startswith("dbguardctl protect /var/lib/app/app.db --adopt app  #"), refused
        other.run("sh", "-ec", protect)
        assert [row["kind"] for row in other.does("list", "app")["backups"]] == ["incremental", "full"]
        (row,) = [row for row in other.does("status")["databases"] if row["name"] == "app"]
        assert row["state"] == "safe"
