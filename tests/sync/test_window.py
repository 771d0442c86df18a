"""The window on simulated lines: it keeps them busy, and an alarm does not wait long.

A line delivers `rate` bytes a second in order, each message whole, and answers after a round trip.
Replay a seed with HOLDFAST_SEED=n; HOLDFAST_LONG=1 tries more of them.
"""

import heapq
import os
import random
from collections import deque
from collections.abc import Callable

import pytest

from agent.sync.up.window import FIRST_BYTES, TARGET_S, Flight, Window

SEEDS = [int(os.environ["HOLDFAST_SEED"])] if "HOLDFAST_SEED" in os.environ else range(3)
if os.environ.get("HOLDFAST_LONG") == "1":
    SEEDS = range(100)
KBIT = 125  # bytes
ALARM_BYTES = 600
PAYLOAD_BYTES_MAX = 131_072
IN_FLIGHT_MAX = 20
WARM_S = 15.0
QUEUE_S = 2.2 * TARGET_S  # nearly all of a wait is the target; a message or two come on top


class Line:
    """A backlog without end over one line, and an alarm now and then."""

    def __init__(self, seed: int, rate: Callable[[float], float], trip_s: float) -> None:
        self.now = 0.0
        self.window = Window(lambda: self.now)
        self.waits_s: list[tuple[float, float]] = []  # of each alarm: when it came, how long
        self.delivered: list[tuple[float, int]] = []
        self._chance = random.Random(seed)
        self._rate = rate
        self._trip_s = trip_s
        self._free_at = 0.0  # when the line has delivered all that it was given
        self._answers: list[tuple[float, int, Flight]] = []
        self._alarms: deque[float] = deque()
        self._count = 0

    def run(self, until_s: float, alarm_s: float = 2.0) -> None:
        alarm_at = self.now + alarm_s
        while self.now < until_s:
            self._send_all()
            answer_at = self._answers[0][0] if self._answers else alarm_at
            self.now = min(answer_at, alarm_at)
            if self.now == alarm_at:
                self._alarms.append(self.now)
                alarm_at += alarm_s * self._chance.uniform(0.5, 1.5)
            else:
                self.window.answered(heapq.heappop(self._answers)[2])

    def _send_all(self) -> None:
        while self._alarms and self._fits(ALARM_BYTES, live=True):
            came = self._alarms.popleft()
            self.waits_s.append((came, self._send(ALARM_BYTES, live=True) - came))
        while True:
            size = min(PAYLOAD_BYTES_MAX, self.window.message_bytes)
            size = int(size * self._chance.uniform(0.5, 1.2))  # the ratio is only estimated
            if not self._fits(size, live=False):
                return
            self._send(size, live=False)

    def _fits(self, size: int, *, live: bool) -> bool:
        room = IN_FLIGHT_MAX if live else IN_FLIGHT_MAX - 2
        return len(self._answers) < room and self.window.has_room(size, live=live)

    def _send(self, size: int, *, live: bool) -> float:
        """When it is wholly at the broker."""
        begins = max(self.now, self._free_at)
        self._free_at = begins + size / self._rate(begins)
        arrives = self._free_at + self._trip_s / 2
        jitter = self._chance.uniform(0, 0.1) * self._trip_s
        self._count += 1
        answer_at = arrives + self._trip_s / 2 + jitter
        flight = self.window.sent(size, live=live)
        heapq.heappush(self._answers, (answer_at, self._count, flight))
        self.delivered.append((self._free_at, size))
        return arrives

    def share(self, begin_s: float, end_s: float) -> float:
        """Of what the line could deliver from `begin_s` to `end_s`."""
        size = sum(size for at, size in self.delivered if begin_s <= at < end_s)
        steps = [begin_s + (end_s - begin_s) * i / 1000 for i in range(1000)]
        return size / (sum(map(self._rate, steps)) / 1000 * (end_s - begin_s))

    def longest_wait_s(self, begin_s: float, end_s: float) -> float:
        return max(wait for came, wait in self.waits_s if begin_s <= came < end_s)


LINES = {
    "satellite, thin": (200 * KBIT, 0.6),
    "satellite": (2000 * KBIT, 0.6),
    "3G": (200 * KBIT, 0.1),
    "very thin": (16 * KBIT, 0.6),
    "4G": (10_000 * KBIT, 0.05),
    "near": (100_000 * KBIT, 0.001),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LINES)
def test_it_keeps_the_line_busy_and_an_alarm_does_not_wait(name: str, seed: int) -> None:
    rate, trip_s = LINES[name]
    line = Line(seed, lambda _: rate, trip_s)
    end_s = 120.0 if rate < 1_000_000 else 40.0
    line.run(end_s)
    assert line.share(WARM_S, end_s) >= 0.9
    # Its way, what is queued, and up to two messages beyond it; nearly all of it is the target.
    floor_s = 2 * 4096 / rate if rate < 4000 else 0.0
    assert line.longest_wait_s(WARM_S, end_s) <= trip_s + QUEUE_S + floor_s
    first_s = (FIRST_BYTES + 4096) / rate
    assert line.longest_wait_s(0, WARM_S) <= trip_s + max(first_s, QUEUE_S) + floor_s


@pytest.mark.parametrize("seed", SEEDS)
def test_it_follows_a_line_that_gets_thinner_and_wider(seed: int) -> None:
    def rate(at: float) -> float:
        return 200 * KBIT if 40 <= at < 100 else 2000 * KBIT

    line = Line(seed, rate, 0.6)
    line.run(160)
    assert line.share(15, 40) >= 0.9
    assert line.share(60, 100) >= 0.9
    assert line.share(115, 160) >= 0.9
    assert line.longest_wait_s(60, 100) <= 0.6 + QUEUE_S


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trips_s", [(0.1, 0.8), (0.8, 0.1)], ids=["longer", "shorter"])
def test_another_route_does_not_starve_it(trips_s: tuple[float, float], seed: int) -> None:
    line = Line(seed, lambda _: 400 * KBIT, trips_s[0])
    line.run(60)
    line._trip_s = trips_s[1]
    line.run(240)
    assert line.share(120, 240) >= 0.9
    assert line.longest_wait_s(120, 240) <= trips_s[1] + QUEUE_S


def test_a_quiet_link_forgets_nothing() -> None:
    """One batch now and then is no sign of a thin line."""
    line = Line(1, lambda _: 2000 * KBIT, 0.6)
    line.run(30)
    known = line.window.rate_bytes_per_s
    while line._answers:
        line.now, _, flight = heapq.heappop(line._answers)
        line.window.answered(flight)
    for _ in range(100):
        line.now += 3.0
        flight = line.window.sent(8000, live=False)
        line.now += 0.6 + 8000 / (2000 * KBIT)
        line.window.answered(flight)
    assert line.window.rate_bytes_per_s >= 0.8 * known


def test_one_message_may_always_go_and_live_ones_have_a_reserve() -> None:
    window = Window(lambda: 0.0)
    assert window.has_room(10**9, live=False)
    backlog = window.sent(FIRST_BYTES, live=False)
    assert not window.has_room(1, live=False)
    assert window.has_room(2000, live=True)
    live = window.sent(2000, live=True)
    assert window.has_room(1000, live=True)
    assert not window.has_room(5000, live=True), "the reserve has an end"
    window.answered(live)
    window.answered(backlog)
    assert window.in_flight_bytes == 0
