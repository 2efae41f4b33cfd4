"""Addresses of servers: what is one, what must not be in it, and whose socket it leads to."""

import pytest

from dbguardd.kinds import KINDS, engine_of
from dbguardd.policy.addresses import named_in, socket_of, sockets_of, whole, wrong_with
from tests.policy.texts import check_text

HERE = "/run/postgresql/.s.PGSQL.5432"


@pytest.mark.parametrize(
    ("url", "socket", "database"),
    [
        ("postgresql:///", HERE, ""),
        ("postgres:///shop", HERE, "shop"),
        ("postgresql://backup@/a%20b", HERE, "a b"),
        ("postgresql:///x?dbname=a%20b", HERE, "a b"),
        ("postgresql://:5433/shop", "/run/postgresql/.s.PGSQL.5433", "shop"),
        ("postgresql:///?host=/srv/s&port=5434", "/srv/s/.s.PGSQL.5434", ""),
        ("postgresql://%2Fsrv%2FBig/x", "/srv/Big/.s.PGSQL.5432", "x"),
        ("postgresql://db.example.org/x?sslmode=verify-full", None, "x"),
        ("postgresql://db.example.org:6432/", None, ""),
        ("postgresql://[2001:db8::1]:6432/x", None, "x"),
        ("postgresql:///?hostaddr=192.0.2.1", None, ""),
        ("postgresql://a.example.org:5432,b.example.org:5433/", None, ""),
        ("postgresql://%2Fsrv%2Fa,%2Fsrv%2Fb:5433/x", "/srv/a/.s.PGSQL.5432", "x"),
        ("postgresql:///?host=a.example.org,/srv/b&port=5433,5434", "/srv/b/.s.PGSQL.5434", ""),
        ("postgresql:///?service=shop", None, ""),
        ("service=shop", None, ""),
    ],
)
def test_an_address_leads_to_a_socket_or_over_the_network(url, socket, database):
    assert wrong_with(url) == ""
    assert (engine_of(url), socket_of(url), named_in(url)) == ("postgresql", socket, database)


def test_several_servers_of_this_host_have_a_socket_each():
    assert sockets_of("postgresql:///?host=/srv/a,/srv/b&port=5433,5434") == [
        "/srv/a/.s.PGSQL.5433",
        "/srv/b/.s.PGSQL.5434",
    ]
    assert sockets_of("postgresql:///?host=/srv/a,/srv/b&port=5433")[1] == "/srv/b/.s.PGSQL.5433"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://me:hunter2@db/x", "password"),
        ("postgresql://me:@db/x", "password"),
        ("postgresql:///x?password=hunter2", "password"),
        ("postgresql:///x?sslpassword=hunter2", "password"),
        ("postgresql://db:99999/x", "a number"),
        ("postgresql://db:port/x", "a number"),
        ("postgresql://db:0/x", "no port"),
        ("postgresql:// db/x", "address"),
        ("mysql://db/x", "address"),
        ("service=a b", "address"),
        ("/var/lib/app.db", "address"),
    ],
)
def test_what_is_no_address_and_what_must_not_be_in_one_is_refused(url, what):
    assert what in wrong_with(url)
    assert "hunter2" not in wrong_with(url)


def test_people_write_less():
    assert {whole(url) for url in ("postgresql:", "postgres:", "postgresql://")} == {"postgresql:///"}
    assert engine_of("/srv/postgresql:x.db") is None


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("postgresql://dbguard@db1/", False),
        ("postgresql://dbguard@db1,db2:5433/?passfile=/srv/pass", False),
        ("service=db1", False),
        ("postgresql://dbguard@db1/shop", True),
        ("postgresql:///shop", True),
    ],
)
def test_pages_are_of_a_whole_cluster_wherever_it_is(url, refused):
    text = f'version = 1\n[database.pg]\nengine = "postgresql"\nurl = "{url}"\nmethod = "pages"\ncontinuous = true\n'
    _, found = check_text({"policy.toml": text})
    wrong = [mistake.message for mistake in found if mistake.severity == "error"]
    assert ["must not name one of its databases" in message for message in wrong] == [True] * refused


@pytest.mark.parametrize("method", KINDS["postgresql"].methods)
@pytest.mark.parametrize("place", ["[database.pg]", "[defaults]"])
def test_a_log_goes_on_from_pages_only(method, place):
    text = f"version = 1\n{place}\ncontinuous = true\n" + ("" if place != "[defaults]" else "[database.pg]\n")
    text += f'engine = "postgresql"\nurl = "postgresql:///"\nmethod = "{method}"\n'
    _, found = check_text({"policy.toml": text})
    wrong = [mistake for mistake in found if mistake.severity == "error"]
    assert [mistake.path[-1] for mistake in wrong] == (["continuous"] if method == "dump" else [])
    assert all('needs method = "pages"' in mistake.message for mistake in wrong)


@pytest.mark.parametrize(
    ("levels", "keep_log", "what"),
    [
        ('minute = "2d", hour = "2d"', "9d", 'hour = "2d": must be longer than minute = "2d"'),
        ('hour = "4d", day = "3d"', "9d", 'day = "3d": must be longer than hour = "4d"'),
        ('hour = "30min"', "9d", "must be one hour at least"),
        ('minute = "2d", day = "9d"', "9d", 'day = "9d": is never reached, because of keep_log = "9d"'),
        ('second = "2d"', "9d", "second"),
        ('minute = "2d", hour = "4d", day = "8d"', "9d", ""),
    ],
)
def test_a_log_becomes_coarser_in_an_order_and_before_it_is_gone(levels, keep_log, what):
    text = f'version = 1\n[database.app]\nengine = "sqlite"\npath = "/srv/app.db"\nthin_log = {{ {levels} }}\n'
    _, found = check_text({"policy.toml": f'{text}keep_log = "{keep_log}"\ncontinuous = true\n'})
    wrong = [mistake.message for mistake in found if mistake.severity == "error"]
    assert len(wrong) == bool(what)
    assert not what or what in wrong[0]


def test_a_log_that_has_no_pages_does_not_become_coarser():
    text = 'version = 1\n[defaults]\nthin_log = { minute = "2d" }\n[database.pg]\nengine = "postgresql"\n'
    _, found = check_text({"policy.toml": f'{text}url = "postgresql:///"\ncontinuous = true\n'})
    assert any("the log of PostgreSQL has every moment or none" in mistake.message for mistake in found)


@pytest.mark.parametrize(("engine", "said"), [("sqlite", "has no archiver"), ("postgresql", "")])
def test_only_a_server_archives_its_log(engine, said):
    where = 'path = "/srv/app.db"' if engine == "sqlite" else 'url = "postgresql:///"\nmethod = "pages"'
    text = f'version = 1\n[database.app]\nengine = "{engine}"\n{where}\ncontinuous = "archive"\n'
    _, found = check_text({"policy.toml": text})
    wrong = [mistake.message for mistake in found if mistake.severity == "error"]
    assert (len(wrong) == 1 and said in wrong[0]) if said else wrong == []
