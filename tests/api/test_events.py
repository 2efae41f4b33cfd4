"""Events as JSON and as a stream that a reader can take up again."""

import json

import pytest

from dbguardd.wire import EventRange
from tests.api.conftest import Connection


def follow(api, count, path="/v1/events", **headers):
    """The first `count` events of the stream, and how many heartbeats came before the last of them."""
    connection = Connection(api.path)
    sent = {"Accept": "text/event-stream", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("GET", path, headers=sent)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    found, event, beats = [], {}, 0
    while len(found) < count or not beats:
        line = answer.readline().decode().rstrip("\n")
        if line.startswith(":"):
            beats += 1
        elif line:
            name, value = line.split(": ", 1)
            event[name] = value
        elif event:
            found.append(event)
            event = {}
    connection.close()
    return found, beats


def test_events_come_as_json(api):
    everything = api.ask("GET", "/v1/events").content["events"]
    assert [event["id"] for event in everything] == [1, 2, 3, 4, 5]
    assert [event["id"] for event in api.ask("GET", "/v1/events?after=2&limit=2").content["events"]] == [3, 4]


def test_a_range_reaches_the_service_as_it_was_asked_for(api):
    path = "/v1/events?after=1&before=5&since=x&until=y&database=app&job=j1&limit=2&last=true"
    assert [event["id"] for event in api.ask("GET", path).content["events"]] == [3, 4]
    assert api.store.calls[-1] == ("events", EventRange(1, 5, "x", "y", "app", "j1"), 2, True)


@pytest.mark.parametrize("query", ["before=3", "since=x", "until=y", "last=true"])
def test_a_stream_refuses_what_it_would_ignore(api, query):
    answer = api.ask("GET", f"/v1/events?{query}", Accept="text/event-stream")
    assert (answer.status, answer.content["code"]) == (400, "DBG-0001")


def test_a_stream_has_ids_names_and_heartbeats(api):
    found, beats = follow(api, 5)
    assert [event["id"] for event in found] == ["1", "2", "3", "4", "5"]
    assert found[0]["event"] == "backup.stored"
    data = json.loads(found[0]["data"])
    assert (data["schema"], data["database"], data["facts"]) == ("dbguard.event/1", "app", {"n": 1})
    assert beats >= 1


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/events", {"Last_Event_ID": "3"}),
        ("/v1/events?after=3", {}),
        ("/v1/events?after=1", {"Last_Event_ID": "3"}),
    ],
)
def test_a_stream_goes_on_after_the_last_event_seen(api, path, headers):
    assert [event["id"] for event in follow(api, 2, path, **headers)[0]] == ["4", "5"]


def test_what_happens_later_comes_too(api):
    connection = Connection(api.path)
    connection.request("GET", "/v1/events?after=5", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    api.store.past.append(type(api.store.past[0])(6, "2026-09-12T02:00:00Z", "job.done", None, "j2", {}))
    while (line := answer.readline()) != b"id: 6\n":
        assert line in (b":\n", b"\n", b": dbguard.events/1\n")
    connection.close()


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "٣"])
def test_a_bad_last_id_is_refused(api, last):
    answer = api.ask("GET", "/v1/events", Accept="text/event-stream", Last_Event_ID=last.encode())
    assert (answer.status, answer.content["code"]) == (400, "DBG-0001")
