"""What systemd hears from the real process: ready, alive, reloading, stopping."""

import os
import select
import signal
import time

import pytest

from tests.process.house import SECONDS, House, Systemd, until


@pytest.fixture
def systemd(house: House):
    systemd = Systemd(house.place / "notify")
    yield systemd
    systemd.socket.close()


def test_ready_comes_when_the_socket_answers(house: House, systemd: Systemd) -> None:
    house.protects(house.table("app"))
    house.database("app")
    house.process = house.launch(NOTIFY_SOCKET=str(systemd.path))
    ready = systemd.hears("READY")
    assert house.api.get("status")["databases"][0]["name"] == "app"  # at once, without waiting
    assert (ready["READY"], ready["STATUS"]) == ("1", "Guarding 1 database")
    assert not any("WATCHDOG" in message for message in systemd.heard[: systemd.heard.index(ready)])
    assert house.stop() == 0


def test_it_does_not_say_ready_when_it_cannot_start(house: House, systemd: Systemd) -> None:
    house.write('[database.app]\nengine = "sqlyte"\npath = "/x"\n')
    process = house.launch(NOTIFY_SOCKET=str(systemd.path))
    assert process.wait(SECONDS) == 9
    assert systemd.listen() == []
    assert f"{house.policy}:3:" in house.log.read_text()


def test_the_watchdog_is_fed_until_the_process_hangs(house: House, systemd: Systemd) -> None:
    process = house.start(NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="200000")
    until(lambda: sum("WATCHDOG" in message for message in systemd.listen()) >= 5, systemd.listen)
    process.send_signal(signal.SIGSTOP)
    until(lambda: state_of(process.pid) == "T", "it stops")
    mark = systemd.mark()
    assert not select.select([systemd.socket], [], [], 1.0)[0]  # five times as long as systemd would wait
    assert systemd.listen()[mark:] == []
    process.send_signal(signal.SIGCONT)
    assert systemd.hears("WATCHDOG", mark) == {"WATCHDOG": "1"}


def test_the_watchdog_of_another_process_is_not_fed(house: House, systemd: Systemd) -> None:
    house.start(NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="50000", WATCHDOG_PID=str(os.getpid()))
    systemd.hears("READY")
    house.database("app")
    house.protects(house.table("app", 'verify = "off"', 'expire = "off"'))
    house.does("reload")
    house.does("backup", "app")
    assert sum("WATCHDOG" in message for message in systemd.listen()) <= 1


@pytest.mark.parametrize("way", ["signal", "socket"])
def test_a_reload_is_told_with_its_time(house: House, systemd: Systemd, way: str) -> None:
    process = house.start(NOTIFY_SOCKET=str(systemd.path))
    systemd.hears("READY")
    for bad in (False, True):
        house.write("[database.app]\n" if bad else house.table("app"))
        mark, before = systemd.mark(), time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        if way == "signal":
            process.send_signal(signal.SIGHUP)
        else:
            assert house.ctl("reload").status == (9 if bad else 0)
        reloading = systemd.hears("RELOADING", mark)
        systemd.hears("READY", mark)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert before <= int(reloading["MONOTONIC_USEC"]) <= after
        names = [name for message in systemd.listen()[mark:] for name in message if name in ("RELOADING", "READY")]
        assert names == ["RELOADING", "READY"]
        assert systemd.listen()[-1]["STATUS"] == "Guarding 1 database"  # a bad policy leaves the old one in force


def test_stopping_comes_first_and_asks_for_time(house: House, systemd: Systemd) -> None:
    house.start(NOTIFY_SOCKET=str(systemd.path))
    systemd.hears("READY")
    mark = systemd.mark()
    assert house.stop() == 0
    (stopping,) = [message for message in systemd.listen()[mark:] if "WATCHDOG" not in message]
    assert stopping["STOPPING"] == "1"
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 60_000_000


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
