"""When all results that nobody has are told again."""

from datetime import UTC, datetime

from agent.sync.readers import AGAIN_S, AGAIN_S_MAX, Readers
from tests.sync.bent import Bent


def round_of(readers: Readers, clock: Bent, *, reads: bool) -> float:
    """Have the round that is due, and wait for the next one; how long that took."""
    assert readers.left_s == 0
    readers.begin()
    readers.heard(reads=reads)
    left_s = readers.left_s
    clock.pass_s(left_s)
    return left_s


def test_while_nobody_reads_the_pause_doubles_up_to_its_bound() -> None:
    readers = Readers(clock := Bent(datetime(2026, 5, 1, tzinfo=UTC)))
    readers.connected()
    pauses = [round_of(readers, clock, reads=False) for _ in range(8)]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert (AGAIN_S, AGAIN_S_MAX) == (60, 3600)


def test_whoever_reads_has_a_whole_round_at_once_and_then_each_minute() -> None:
    readers = Readers(clock := Bent(datetime(2026, 5, 1, tzinfo=UTC)))
    readers.connected()
    for _ in range(3):
        round_of(readers, clock, reads=False)
    readers.begin()
    readers.heard(reads=False)
    assert readers.none
    readers.heard(reads=True)  # a new one, meanwhile
    assert not readers.none
    assert [round_of(readers, clock, reads=True) for _ in range(3)] == [60] * 3


def test_an_order_or_a_connection_ends_a_long_pause() -> None:
    readers = Readers(clock := Bent(datetime(2026, 5, 1, tzinfo=UTC)))
    readers.connected()
    for _ in range(5):
        round_of(readers, clock, reads=False)
    readers.begin()
    readers.heard(reads=False)
    assert readers.left_s == 1920
    readers.ordered()
    assert readers.left_s == AGAIN_S
    clock.pass_s(59)
    readers.ordered()  # it puts nothing off
    assert readers.left_s == 1
    readers.connected()
    assert (readers.left_s, readers.reads) == (0, None)


def test_a_round_that_is_due_is_not_put_off() -> None:
    readers = Readers(Bent(datetime(2026, 5, 1, tzinfo=UTC)))
    readers.connected()
    readers.heard(reads=False)  # of an answer, before the round could begin
    assert readers.left_s == 0
    readers.begin()
    assert readers.left_s == 2 * AGAIN_S
