"""What a person is told to type means what it says, and can be typed by the person who is told."""

import os
import pwd
import shlex
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from postgres_world import as_owner, owner
from psycopg.conninfo import conninfo_to_dict

from dbguardd.engines.postgresql.typed import as_owner as as_server_owner
from dbguardd.engines.postgresql.typed import running


@pytest.mark.parametrize("name", ["shop", "host=elsewhere", "postgresql://elsewhere/", "-c", "a b ", "a\nb"])
def test_the_name_of_a_database_is_no_address_of_another_server(name):
    """Whoever made it chose it, and an administrator types what the text says."""
    words = shlex.split(running({}, "postgres", "o", name))
    said = words[words.index("-d") + 1]
    found = conninfo_to_dict(said) if "=" in said or "://" in said else {"dbname": said}
    assert found == {"dbname": name} and not said.startswith("-")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: NOTHING is tested of a daemon that runs as another user")
def test_only_root_is_told_to_use_runuser():
    """An ordinary user with a server and a daemon of their own may not."""

    def below_the_owner():
        with ProcessPoolExecutor(1, get_context("fork")) as child:
            return child.submit(as_server_owner, "psql").result()

    name = pwd.getpwuid(owner()).pw_name
    assert as_owner(as_server_owner, "psql") == ["runuser", "-u", name, "--", "psql"]  # its parent is root
    assert as_owner(below_the_owner) == ["psql"]
    assert as_server_owner("psql")[0] == "runuser"


@pytest.mark.parametrize("role", ["o", "o'b", "a  b", "a\n \\x41'b", " a"])
def test_who_runs_a_text_is_the_very_role_that_owned_what_is_in_it(role):
    """There may be another role with one blank, and what it may do its maker knows."""
    for live in ({}, {"host": "elsewhere"}):
        typed = running(live, "postgres", role, "shop")
        assert "\n" not in typed
        said = subprocess.run(["bash", "-c", f"printf '%s\\0' {typed}"], check=True, capture_output=True)
        words = said.stdout.decode().split("\0")
        told = conninfo_to_dict(words[words.index("-d") + 1])["user"] if live else words[words.index("-c") + 1]
        assert told == (role if live else f'SET ROLE "{role}"')
