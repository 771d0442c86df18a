"""What is in flight: its places are neither lost nor doubled."""

import asyncio

import pytest

from agent.clock import Clock
from agent.errors import LinkError
from agent.sync.mqtt.flight import Flight


async def test_a_place_that_nobody_waits_for_any_more_goes_to_the_next() -> None:
    flight = Flight(Clock())
    flight.free = 1
    await flight.room()
    flight.expect(1, "a")
    first, second = (asyncio.create_task(flight.room()) for _ in range(2))
    await asyncio.sleep(0)
    flight.answered(1)  # first gets the place, and is ended before it can use it
    first.cancel()
    await asyncio.wait([first])
    await second
    assert flight.free == 0


async def test_at_the_end_everybody_hears_of_it() -> None:
    flight = Flight(Clock())
    flight.free = 1
    await flight.room()
    answer = flight.expect(1, "a")
    waiting = asyncio.create_task(flight.room())
    await asyncio.sleep(0)
    flight.end(LinkError("gone"))
    for each in (answer, waiting):
        with pytest.raises(LinkError, match="gone"):
            await each
    assert flight.overdue_s(0.0) is None


async def test_an_answer_to_what_was_never_sent_frees_no_place() -> None:
    flight = Flight(Clock())
    assert flight.answered(7) is None
    assert flight.free == 0
