"""Who acts: one of those on one database, by its own clock alone."""

import pytest

from agent.clock import Clock
from fleet.control import base
from fleet.control.lease import Lease, LeaseLost


class Hands(Clock):
    """A clock that is set by hand."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


async def test_the_first_holds_and_the_second_waits_until_it_is_silent(url: str) -> None:
    async with base.open(url) as one, base.open(url) as other:
        ours, theirs = Hands(), Hands()
        theirs.now_s = 7.0  # another machine: no clocks are compared
        first, second = Lease(one, ours, "first", 9.0), Lease(other, theirs, "second", 9.0)
        assert await first.tend()
        assert not await second.tend()
        for _ in range(5):
            ours.now_s += 3
            theirs.now_s += 3
            assert await first.tend() and first.held
            assert not await second.tend() and not second.held
        theirs.now_s += 8.9
        assert not await second.tend()
        theirs.now_s += 0.2
        assert await second.tend() and second.held
        ours.now_s += 9.1
        assert not first.held, "it knows by itself"
        with pytest.raises(LeaseLost):
            async with first.begin():
                raise AssertionError("it must not act")
        assert not await first.tend()
        async with second.begin() as transaction:
            assert await transaction.fetch("SELECT 1")


async def test_who_leaves_is_followed_at_once(url: str) -> None:
    async with base.open(url) as one, base.open(url) as other:
        first, second = Lease(one, Hands(), "first", 9.0), Lease(other, Hands(), "second", 9.0)
        assert await first.tend()
        assert not await second.tend()
        await first.leave()
        assert not first.held
        assert await second.tend()
        await first.leave()
        assert await second.tend(), "who does not hold it cannot give it away"


async def test_a_holder_that_was_paused_changes_nothing(url: str) -> None:
    async with base.open(url) as one, base.open(url) as other:
        clock = Hands()
        first, second = Lease(one, Hands(), "first", 9.0), Lease(other, clock, "second", 9.0)
        assert await first.tend()
        assert not await second.tend()
        clock.now_s += 9
        assert await second.tend()
        assert first.held, "as far as it knows"
        with pytest.raises(LeaseLost):
            async with first.begin() as transaction:
                await transaction.execute("DELETE FROM leases")
        assert await second.tend()
