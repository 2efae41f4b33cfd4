"""Completion of commands, names and ids, as a shell asks for it."""

from __future__ import annotations

import pytest

from dbguardd import errors
from tests.surface.answers import APP_1, APP_5, JOB
from tests.surface.conftest import Ctl
from tests.surface.fake import FakeDaemon


def _complete(ctl: Ctl, line: str, shell: str = "bash") -> list[str]:
    words = line.split(" ")
    done = ctl(_DBGUARDCTL_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return [row.partition(",")[2] for row in done.stdout.splitlines() if row]


def test_completion(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert _complete(ctl, "dbguardctl st") == ["status"]
    assert _complete(ctl, "dbguardctl list a") == ["app"]
    assert _complete(ctl, "dbguardctl log c") == ["crm", "cache"]
    assert "--errors" in _complete(ctl, "dbguardctl log --")
    assert _complete(ctl, "dbguardctl restore ") == ["app", "crm", "cache", "quiet"]
    assert _complete(ctl, "dbguardctl restore app --id 01K4Y") == [APP_1]
    assert _complete(ctl, "dbguardctl restore crm --id 01K4Y") == []  # those of the other are no use
    assert _complete(ctl, "dbguardctl verify 01K4YJ") == [APP_1]
    assert _complete(ctl, "dbguardctl recall 01K4") == [APP_5]
    assert _complete(ctl, "dbguardctl job watch 01") == [JOB]
    assert _complete(ctl, "dbguardctl explain dbg-30") == [
        code for code in errors.OUTCOMES if code.startswith("DBG-30")
    ]
    assert _complete(ctl, "dbguardctl key recovery-test ") == ["main"]
    assert "--in-place" in _complete(ctl, "dbguardctl restore --")
    (path,) = ctl(
        _DBGUARDCTL_COMPLETE="bash_complete", COMP_WORDS="dbguardctl restore app --to /sr", COMP_CWORD="4"
    ).stdout.splitlines()
    assert path == "file,/sr"  # the shell completes it
    daemon.routes.clear()
    assert _complete(ctl, "dbguardctl list a") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, ctl: Ctl) -> None:
    done = ctl("completion", shell)
    assert done.returncode == 0 and "_DBGUARDCTL_COMPLETE" in done.stdout
