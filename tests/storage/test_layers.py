"""What the layers do beyond the contract: when they try again, when they give up, what they note."""

import pytest

from dbguardd.errors import Degraded, GuardError, NoSpace, ObjectMissing, PolicyInvalid, Unreachable
from dbguardd.storage import open_storage
from dbguardd.storage.layers import Call, Recording, Retrying
from dbguardd.storage.memory import Memory


class Refusing(Memory):
    """Raises the errors of a list, one for each put, then works."""

    def __init__(self, *errors: GuardError) -> None:
        super().__init__()
        self.errors = list(errors)

    def put(self, name, data):
        if self.errors:
            raise self.errors.pop(0)
        super().put(name, data)


def test_waits_grow_as_asked_and_then_it_gives_up() -> None:
    waited: list[float] = []
    storage = Retrying(Refusing(*[Unreachable("x")] * 2), (1, 10), waited.append)
    storage.put("a", b"")
    assert waited == [1, 10]
    storage = Retrying(Refusing(*[Unreachable("x")] * 3), (1, 10), waited.append)
    with pytest.raises(Unreachable):
        storage.put("a", b"")
    assert waited == [1, 10, 1, 10]


@pytest.mark.parametrize("error", [Degraded("x"), NoSpace("x"), ObjectMissing("x")])
def test_what_will_not_get_better_is_not_tried_again(error: GuardError) -> None:
    waited: list[float] = []
    with pytest.raises(type(error)):
        Retrying(Refusing(error), (1,), waited.append).put("a", b"")
    assert waited == []


def test_a_sleep_that_raises_ends_the_trying() -> None:
    def cancelled(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retrying(Refusing(Unreachable("x")), (1,), cancelled).put("a", b"")


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
    assert open_storage({"type": "memory"}).url == "memory:"
    wrong_rooms = [{"keep_free": "lots"}, {"keep_free": "100%"}, {"keep_free": -1}, {"max_bytes": -1}]
    for wrong in ({"type": "tape"}, *({**settings, **room} for room in wrong_rooms)):
        with pytest.raises(PolicyInvalid):
            open_storage(wrong)


def test_a_listing_that_breaks_off_too_often_breaks_off() -> None:
    class Broken(Memory):
        def list(self, prefix):
            yield from super().list(prefix)
            raise Unreachable("x")

    storage = Broken()
    storage.put("a", b"")
    waited: list[float] = []
    entries = Retrying(storage, (1, 2), waited.append).list("")
    assert next(entries).name == "a"
    with pytest.raises(Unreachable):
        next(entries)
    assert waited == [1, 2]


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
