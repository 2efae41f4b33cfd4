"""What is said when a server does not let us in: which file, statement or command helps."""

import pytest
from psycopg import errors

from dbguardd.engines.postgresql.content import naming_table
from dbguardd.engines.postgresql.physical.prove import _meaning
from dbguardd.engines.postgresql.refusals import refusal, unconnected
from dbguardd.errors import PolicyInvalid, SourceDenied


def test_a_missing_password_goes_into_the_file_that_the_url_names():
    wrong = errors.OperationalError("fe_sendauth: no password supplied")
    assert unconnected("it", {"passfile": "/srv/pass"}, wrong).hints[0].startswith("/srv/pass, of ")
    assert "/.pgpass, of " in unconnected("it", {}, wrong).hints[0]


def test_a_password_file_that_others_may_read_is_said_to_be_ignored(tmp_path):
    """The library says so on standard error, and then that no password was supplied."""
    place, wrong = tmp_path / "pass", errors.OperationalError("fe_sendauth: no password supplied")
    place.write_text("localhost:*:*:*:secret\n")
    place.chmod(0o640)
    assert unconnected("it", {"passfile": str(place)}, wrong).hints[0].startswith(f"chmod 0600 {place}  #")
    place.chmod(0o600)
    assert unconnected("it", {"passfile": str(place)}, wrong).hints[0].startswith(f"{place}, of ")


def test_a_database_that_a_role_may_not_enter_is_said_with_the_statement_that_lets_it_in():
    wrong = errors.OperationalError(
        'FATAL: permission denied for database "My Shop" DETAIL: User does not have CONNECT'
    )
    denied = unconnected("it", {"user": "guard"}, wrong)
    assert isinstance(denied, SourceDenied)
    assert denied.hints[0].startswith('GRANT CONNECT ON DATABASE "My Shop" TO guard;')


def test_a_certificate_that_is_not_accepted_is_no_silent_server():
    """The command shows what is wrong with it: the library says no more than that it is."""
    wrong = errors.OperationalError("SSL error: certificate verify failed")
    said = unconnected("it", {"host": "db1", "port": "5433", "sslrootcert": "/etc/ca.crt"}, wrong)
    assert "the certificate of the server is not accepted" in said.message
    assert said.hints[0].startswith(
        "openssl s_client -starttls postgres -connect db1:5433 -CAfile /etc/ca.crt </dev/null"
    )
    wrong = errors.OperationalError('server certificate for "a" does not match host name "b"')
    assert "-CAfile" not in unconnected("it", {"host": "b", "sslrootcert": "system"}, wrong).hints[0]


def test_a_server_whose_disk_is_full_is_not_said_to_be_stopped():
    wrong = errors.OperationalError("connection failed: FATAL:  could not write init file")
    assert unconnected("it", {"host": "/run"}, wrong).hints[0].startswith("df -h  #")


def test_a_wrong_value_in_the_url_is_no_server_to_be_waited_for():
    wrong = errors.OperationalError('connection is bad: invalid sslmode value: "verifyfull"')
    said = unconnected("it", {"host": "db1"}, wrong)
    assert isinstance(said, PolicyInvalid) and not said.transient and "verifyfull" in said.detail


def test_what_fails_while_a_table_is_read_is_said_with_the_table_by_the_backup_and_by_the_proof():
    """The server names only the file of a damaged page."""
    with pytest.raises(errors.DataCorrupted) as caught, naming_table("shop.public.orders"):
        raise errors.DataCorrupted("invalid page in block 7 of relation base/16384/16421")
    said = "This happened while the table shop.public.orders was read."
    assert refusal("it", caught.value).detail.endswith(said)
    assert _meaning(caught.value)[1].endswith(said)
