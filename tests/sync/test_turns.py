"""Whose turn it is on the line, and when heartbeats come."""

import asyncio
import math
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from agent.store.linkstate import Orders
from agent.sync.budget.pace import OVERHEAD_BYTES, SCARCE_BEAT_S, Pace
from tests.sync.bent import Bent, paced

BERLIN = ZoneInfo("Europe/Berlin")
MIB = 1 << 20


def at(*when: int) -> Bent:
    return Bent(datetime(*when, tzinfo=BERLIN))  # type: ignore[arg-type, misc]


async def beaten(pace: Pace, clock: Bent, size_bytes: int) -> float:
    """Seconds from a heartbeat of so many bytes to the next."""
    begun = clock.mono
    beat = asyncio.create_task(pace.next_beat(size_bytes))
    await asyncio.sleep(0)
    while not beat.done():
        clock.pass_s(0.5)
        pace.look()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return clock.mono - begun


@pytest.mark.parametrize(
    ("more", "expected_s"),
    [
        ({}, 5),
        ({"rate_bytes_per_s_max": 100_000}, 5),
        ({"rate_bytes_per_s_max": 2000}, 10),
        ({"quota_bytes_per_day": 86_400 * 1000}, 20),
        ({"quota_bytes_per_day": 86_400 * 1000, "rate_bytes_per_s_max": 2000}, 20),
    ],
)
async def test_heartbeats_use_a_tenth_of_the_line_at_most(
    more: dict[str, int], expected_s: float
) -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, heartbeat_s=5.0, **more)
    assert await beaten(pace, clock, 2000 - OVERHEAD_BYTES) == expected_s
    assert pace.heartbeat_s == expected_s
    assert pace.quota.day.used_bytes == 2000 == pace.sent_bytes


async def test_heartbeats_take_no_turn_and_come_seldom_once_the_quota_is_used_up() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, quota_bytes_per_day=100 * MIB, rate_bytes_per_s_max=100_000)
    pace.spent(100 * MIB)
    assert not pace.allows(live=True)
    assert await beaten(pace, clock, 1000) == SCARCE_BEAT_S


class Takers:
    """Tasks that take, and the order in which they had their turn."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.went: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, size_bytes: int, *, live: bool) -> None:
        async def go() -> None:
            await self.pace.take(size_bytes, live=live)
            self.went.append(name)

        self.tasks[name] = asyncio.create_task(go())
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def later(self, clock: Bent, seconds: float) -> None:
        clock.pass_s(seconds)
        self.pace.look()
        await self.settle()


async def test_what_lives_goes_before_what_has_waited() -> None:
    clock = at(2026, 5, 1, 12)
    takers = Takers(paced(clock, BERLIN, rate_bytes_per_s_max=10_000))
    takers.pace.spent(100_000)
    await takers.begin("old", 3000, live=False)
    await takers.begin("fresh", 9000, live=True)
    assert takers.went == []
    await takers.later(clock, 9.6)  # room for the small old one alone
    assert takers.went == []
    await takers.later(clock, 1.0)
    assert takers.went == ["fresh"]
    await takers.later(clock, 1.0)
    assert takers.went == ["fresh", "old"]


async def test_a_taker_that_gives_up_counts_nothing_and_holds_nobody_back() -> None:
    clock = at(2026, 5, 1, 12)
    takers = Takers(paced(clock, BERLIN, rate_bytes_per_s_max=10_000))
    takers.pace.spent(20_000)
    used = takers.pace.sent_bytes
    await takers.begin("fresh", 9000, live=True)
    await takers.begin("old", 3000, live=False)
    takers.tasks["fresh"].cancel()
    await takers.settle()
    assert takers.pace.sent_bytes == used
    await takers.later(clock, 2.5)
    assert takers.went == ["old"]
    assert takers.pace._waiting == set()


async def test_takers_hear_of_orders_at_once() -> None:
    clock = at(2026, 5, 1, 12)
    takers = Takers(paced(clock, BERLIN))
    takers.pace.order(Orders(math.inf))
    await takers.begin("one", 100, live=True)
    await takers.begin("two", 100, live=False)
    assert takers.went == []
    takers.pace.order(Orders())
    await takers.settle()
    assert takers.went == ["one", "two"]


async def test_a_heartbeat_that_was_far_off_comes_when_the_day_begins_anew() -> None:
    clock = at(2026, 5, 1, 23, 59)
    pace = paced(clock, BERLIN, quota_bytes_per_day=100 * MIB, heartbeat_s=5.0)
    pace.spent(100 * MIB)
    beat = asyncio.create_task(pace.next_beat(0))
    await asyncio.sleep(0)
    for _ in range(3):
        clock.pass_s(10)
        pace.look()
        await asyncio.sleep(0)
        assert not beat.done()
    clock.pass_s(40)
    pace.look()
    await asyncio.wait([beat], timeout=30)
    assert beat.done()
