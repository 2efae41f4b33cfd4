"""How a storage is opened, what its probe believes, and what the storage that records notes."""

import pytest

from dbguardd.errors import ObjectMissing, PolicyInvalid, Unreachable
from dbguardd.storage import open_storage
from tests.storage.layers import Call, Recording
from tests.storage.memory import Memory


def test_recording_notes_calls_and_bytes() -> None:
    storage = Recording(Memory())
    storage.put("a", [b"12", memoryview(b"34")])
    storage.get("a", 1)
    with pytest.raises(ObjectMissing):
        storage.get("b")
    list(storage.list(""))
    storage.stat("a")
    storage.delete("a")
    storage.probe()
    assert storage.calls == [
        *(Call("put", "a", 4), Call("get", "a", 3), Call("get", "b"), Call("list", "")),
        *(Call("stat", "a"), Call("delete", "a"), Call("probe", "")),
    ]


def test_a_storage_is_opened_as_the_job_names_it(tmp_path) -> None:
    settings = {"name": "local", "type": "directory", "path": str(tmp_path / "store"), "keep_free": "0.1%"}
    with pytest.raises(Unreachable):
        open_storage(settings)
    storage = open_storage(settings, create=True)
    storage.put("a", b"1")
    assert open_storage(settings).get("a") == b"1"
    wrong_rooms = [{"keep_free": "lots"}, {"keep_free": "100%"}, {"keep_free": -1}, {"max_bytes": -1}]
    for wrong in ({"type": "tape"}, *({**settings, **room} for room in wrong_rooms)):
        with pytest.raises(PolicyInvalid):
            open_storage(wrong)


def test_a_probe_believes_nobody() -> None:
    class Overwriting(Memory):
        def put(self, name, data):
            self.delete(name)
            super().put(name, data)

    class Forgetful(Memory):
        def get(self, name, start=0, length=None):
            return b"something"

    assert Overwriting().probe().create_only is False
    assert Forgetful().probe().read_after_write is False
    for storage in (Overwriting(), Forgetful()):
        storage.probe()
        assert list(storage.list("")) == []
