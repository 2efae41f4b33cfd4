"""Long streams between the halves: a database as SQL text, through the real worker."""

from tests.faults.hand import Hand, a_place


def test_a_dump_longer_than_any_buffer_is_proven_and_restored(press):
    """Thousands of rows each way, while progress is told the other way round."""
    with a_place() as place:
        hand = Hand(place, press, settings='method = "dump"')
        hand.seed(bookings=20_000, documents=300)
        ended = hand.run("backup", "shop", "--verify")
        assert ended.result["proof"]["grade"] == "proven"
        assert ended.result["backup"]["source_bytes"] > 2 << 20
        proof = hand.run("verify", "shop").result["proof"]
        assert (proof["grade"], proof["failure"]) == ("proven", None)
        hand.restores(ended.result["backup"]["id"])
        hand.is_clean()
