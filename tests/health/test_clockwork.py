"""The clock is said to be untrusted until it is synchronised, and then it is bound."""

import ctypes

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.clockwork import Clockwork
from agent.health.conditions import Conditions


class Bent(Clock):
    true = False

    def synchronised(self) -> bool:
        return self.true


async def test_it_is_a_note_until_the_clock_is_trusted() -> None:
    clock, bound = Bent(), list[int]()
    conditions = Conditions(clock)

    async def bind() -> None:
        bound.append(1)

    clockwork = Clockwork(bind, conditions, clock)
    await clockwork.look()
    (condition,) = conditions.all()
    assert (condition.name, condition.severity) == ("clock_untrusted", "note")
    assert "chrony" in condition.remedy
    assert (bound, conditions.status()) == ([], "healthy")
    clock.true = True
    await clockwork.look()
    assert (conditions.all(), bound) == ([], [1])


async def test_a_store_that_cannot_be_written_does_not_end_the_watch() -> None:
    clock = Bent()
    clock.true = True

    async def bind() -> None:
        raise StoreError("no")

    await Clockwork(bind, Conditions(clock), clock).look()


def test_the_kernel_is_asked_and_nothing_is_changed() -> None:
    """Against its own answer, read in another way: the largest error that it admits."""
    asked = (ctypes.c_long * 64)()  # modes and its padding are 0; then offset, freq, maxerror
    assert ctypes.CDLL(None).adjtimex(asked) >= 0
    status = ctypes.cast(
        ctypes.byref(asked, 5 * ctypes.sizeof(ctypes.c_long)), ctypes.POINTER(ctypes.c_int)
    )
    assert Clock().synchronised() is not bool(status[0] & 0x40)
