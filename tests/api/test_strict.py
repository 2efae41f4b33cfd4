"""What a peer sends is right in every part, or refused with every mistake named."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbguardd.api import strict
from dbguardd.api.routes import ROUTES
from dbguardd.errors import Usage
from dbguardd.requests import REQUESTS
from dbguardd.wire import MAX_REQUEST_BYTES

BAD = {
    "not JSON": b"{",
    "not UTF-8": b'{"database": "\xff"}',
    "not an object": b"[]",
    "a number": b"7",
    "a duplicate key": b'{"database": "app", "full": false, "full": true}',
    "a duplicate key below": b'{"database": {"a": 1, "a": 2}}',
    "NaN": b'{"database": NaN}',
    "infinity": b'{"database": -Infinity}',
    "a number that overflows": b'{"database": 1e999}',
    "a number of many digits": b'{"database": ' + b"9" * 5000 + b"}",
    "deep lists": b'{"database": ' + b"[" * 40 + b"]" * 40 + b"}",
    "very deep lists": b"[" * 100_000,
    "very deep objects": b'{"a":' * 100_000,
    "NUL": b'{"database": "a\\u0000pp"}',
    "a lone surrogate": b'{"database": "\\ud800"}',
    "text that turns around": b'{"database": "\\u202eppa"}',
    "a key with a control": b'{"\\u001b[31m": 1}',
    "a long text": b'{"database": "' + b"a" * 5000 + b'"}',
    "a field of another type": b'{"database": 7}',
    "a number for a flag": b'{"database": "app", "full": 1}',
    "null": b'{"database": null}',
    "a missing field": b"{}",
    "an unknown field": b'{"database": "app", "ful": true}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_refused(api, body):
    answer = api.ask("POST", "/v1/jobs/backup", body)
    assert (answer.status, answer.content["code"]) == (400, "DBG-0001"), answer.content
    assert api.store.calls == []


def test_all_mistakes_are_told_at_once(api):
    answer = api.ask("POST", "/v1/jobs/backup", {"ful": True, "verify": "yes", "note": 7})
    assert answer.content["mistakes"] == [
        'ful: unknown, did you mean "full"?',
        "database: missing",
        "verify: true or false is expected, got a text",
        "note: a text is expected, got a whole number",
    ]


def test_the_deepest_that_passes_and_one_more():
    assert strict.parse(b"[" * 32 + b"1" + b"]" * 32)
    with pytest.raises(Usage, match="deeper"):
        strict.parse(b"[" * 33 + b"]" * 33)


def test_a_body_has_at_most_a_mebibyte(api):
    fits = b'{"database": "app"' + b" " * (MAX_REQUEST_BYTES - 19) + b"}"
    assert len(fits) == MAX_REQUEST_BYTES
    assert api.ask("POST", "/v1/jobs/backup", fits).status == 202
    for sent in (fits + b" ", iter([fits, b" "])):  # with its length said before, and in chunks
        answer = api.ask("POST", "/v1/jobs/backup", sent)
        assert (answer.status, answer.content["code"], answer.headers["Connection"]) == (413, "DBG-0009", "close")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?limit=0",
        "/v1/jobs?limit=10001",
        "/v1/jobs?limit=1&limit=2",
        "/v1/jobs?limit=-1",
        "/v1/jobs?limit=٣",
        "/v1/jobs?limit=1e3",
        "/v1/jobs?state=runing",
        "/v1/jobs?database=",
        "/v1/jobs?database=%00",
        "/v1/jobs?database=%ff",
        "/v1/jobs?nix=1",
        "/v1/jobs/j1?wait=601",
        "/v1/jobs/j1?wait=inf",
        "/v1/databases/app/backups?all=maybe",
        "/v1/status?x",
        "/v1/show/%00",
        "/v1/show/%ff",
        "/v1/config/explain",
        "/v1/jobs?" + "&".join(f"a{n}=1" for n in range(100)),
    ],
)
def test_a_bad_query_is_refused(api, path):
    answer = api.ask("GET", path.encode().decode("latin-1") if path.isascii() else path.replace("٣", "%D9%A3"))
    assert (answer.status, answer.content["code"]) == (400, "DBG-0001"), answer.content


def test_a_near_word_is_suggested(api):
    assert 'did you mean "running"?' in api.ask("GET", "/v1/jobs?state=runing").content["message"]
    assert 'did you mean "limit"?' in api.ask("GET", "/v1/jobs?limt=1").content["message"]


def test_what_would_be_ignored_is_refused(api):
    assert api.ask("GET", "/v1/status", {"a": 1}).status == 400
    assert api.ask("POST", "/v1/reload", {"force": True}).status == 400
    assert api.ask("POST", "/v1/jobs/backup", {"database": "app"}, Content_Encoding="gzip").status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(sorted({name for kind in REQUESTS.values() for name in kind.__dataclass_fields__}))
POSTS = [route for route in ROUTES if route.method == "POST"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(POSTS),
    body=JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(NAMES, JSON, max_size=4).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200),
    name=st.text(min_size=1, max_size=6),
)
def test_no_body_and_no_name_is_a_bug(api, route, body, name):
    quoted = "".join(f"%{byte:02x}" for byte in name.encode(errors="surrogatepass"))
    path = route.path.replace("{name}", quoted).replace("{id}", quoted)
    assert api.ask(route.method, path, body).status < 500


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_the_reader_gives_what_json_gives_or_refuses(body):
    try:
        value = strict.parse(body)
    except Usage:
        return
    assert value == (json.loads(body) if body.strip() else {})
