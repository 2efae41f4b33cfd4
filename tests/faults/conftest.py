"""A loaded dbguardd for each test process, and places to run it in."""

import pytest

from tests.faults.hand import Hand, Press, a_place


@pytest.fixture(scope="session")
def press():
    press = Press()
    yield press
    press.close()


@pytest.fixture
def hand(press):
    """A shop without backups yet."""
    with a_place() as place:
        hand = Hand(place, press)
        hand.seed()
        yield hand
