"""The thin line's budget: when a message may go, by rate, hours, quota and an operator's orders.

Whose rate holds, the first of: `sync now` for its time, an operator's limit, the hours of the day,
`link.rate_bytes_per_s_max`. While the clock is not trusted nobody knows the hour, and hours do not
count. Over any time no more goes than the rate allows, its burst (bucket.py) and one message.

Nothing goes while an operator has it paused, nor above the quota (quota.py). What lives goes before
what does not, and does not wait for it. The answer to an order that came over the link is owed: it
waits for the rate alone, and is counted.

A message counts as its payload and OVERHEAD_BYTES. Presence and heartbeats count, but take no turn.
Heartbeats come each `link.heartbeat_s`, or as seldom as it takes for them to use no more than
BEAT_SHARE of rate and quota (one each 5 s takes some 20 MB a day); once the quota is used up, each
SCARCE_BEAT_S at most.
"""

import asyncio
import math
from collections.abc import Callable
from datetime import datetime
from typing import Literal

from msgspec import Struct

from agent.clock import Clock
from agent.config import Link as Settings
from agent.hours import in_force, local_time
from agent.store.linkstate import Day, Orders
from agent.sync.budget.bucket import Bucket
from agent.sync.budget.quota import DAY_S, Quota

LOOK_S = 1.0  # how often the clocks are asked: an hour, the day or an order may have ended
# PUBLISH's header with a topic of 60 bytes (70), one header each of TCP/IPv4 (52) and TLS 1.3 (22),
# and the PUBACK that comes back (5, 52 and 22). What is not counted: the headers of a large
# message's further segments (3.6 % of it), what TCP sends again, pings, and acks from the ingest.
OVERHEAD_BYTES = 224
MESSAGE_S = 2.0  # of the rate, that one message should take: so long a live one waits behind it
MESSAGE_BYTES_MIN = 8192
BEAT_SHARE = 0.1
SCARCE_BEAT_S = 600.0


class Rate(Struct, frozen=True):
    """The byte rate that holds (None: any), whose word it is, and until when (monotonic)."""

    bytes_per_s_max: int | None
    why: Literal["now", "order", "hours", "settings"]
    until: float = math.inf


class Pace:
    """Used in the event loop's thread alone."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        local: Callable[[Clock], datetime | None] = local_time,
    ) -> None:
        """`local` is the time at the site, None while it is not known."""
        now = clock.monotonic()
        self.orders = Orders()
        self.quota = Quota(settings.quota_bytes_per_day, now)
        self.rate = Rate(settings.rate_bytes_per_s_max, "settings")
        self.sent_bytes = 0  # since the start, with what each message adds
        self.local: datetime | None = None
        self._settings = settings
        self._clock = clock
        self._ask_local = local
        self._lifted_until = -math.inf
        self._bucket = Bucket(now)
        self._looked_at = now
        self._beat_bytes = 0
        self._live_waiting = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self.look()

    def restore(self, orders: Orders, day: Day) -> None:
        """As it was noted before a restart; what was sent since the start counts for it too."""
        used_bytes = day.used_bytes + self.quota.day.used_bytes
        self.quota.day = Day(day.begun, day.date, used_bytes)
        self.order(orders)

    def change(self, settings: Settings) -> None:
        """These hold from now on; orders, and what the day has used, go on."""
        self._settings = settings
        self.quota.bytes_per_day = settings.quota_bytes_per_day
        self.look()

    def order(self, orders: Orders) -> None:
        """These hold from now on, in place of the former."""
        self.orders = orders
        self.look()

    def lift(self, seconds: float) -> None:
        """No rate for so long; the quota holds, and so does a pause."""
        self._lifted_until = self._clock.monotonic() + seconds
        self.look()

    def look(self) -> None:
        """Ask the clocks: an hour, the day or an order may have ended. Whoever waits asks anew."""
        now = self._looked_at = self._clock.monotonic()
        self.local = self._ask_local(self._clock)
        self.orders = in_time(self.orders, now)
        self.rate = self._rate(now)
        self._bucket.turn(self.rate.bytes_per_s_max, now)
        self.quota.look(self.local, now)
        self._wake()

    def _rate(self, now: float) -> Rate:
        if now < self._lifted_until:
            return Rate(None, "now", self._lifted_until)
        if self.orders.limit_bytes_per_s is not None:
            return Rate(self.orders.limit_bytes_per_s, "order", self.orders.limit_until)
        hours = in_force(self._settings.hours, self.local) if self.local else None
        if hours:
            return Rate(hours.rate_bytes_per_s_max, "hours")
        return Rate(self._settings.rate_bytes_per_s_max, "settings")

    async def take(self, size_bytes: int, *, live: bool, owed: bool = False) -> None:
        """Wait until a message of so many bytes may go; it counts as sent from then on.

        `owed`: neither a pause nor the quota holds it back.
        """
        self._live_waiting += live
        try:
            while wait_s := self.wait_s(size_bytes, live=live, owed=owed):
                await self._wait(wait_s)
            self.spent(size_bytes)
        finally:
            self._live_waiting -= live
            if live and not self._live_waiting:
                self._wake()  # the others' turn

    def wait_s(self, size_bytes: int, *, live: bool, owed: bool = False) -> float:
        """Seconds until it is worth asking again for such a message; 0: it may go."""
        allowed = self.allows(live=live) or owed
        if not allowed or (self._live_waiting and not live):
            return LOOK_S
        wait_s = self._bucket.wait_s(size_bytes + OVERHEAD_BYTES, self._clock.monotonic())
        return min(wait_s, LOOK_S)

    def allows(self, *, live: bool) -> bool:
        """Whether a message may go now, or would but for the rate: no pause, and some quota left.

        True of this moment alone; `take` waits for the next one.
        """
        if self._clock.monotonic() - self._looked_at >= LOOK_S:
            self.look()
        held_back = ("all",) if live else ("all", "backlog")
        return self.orders.paused_until is None and self.quota.reached not in held_back

    def spent(self, size_bytes: int) -> None:
        """A message of so many bytes goes out, whether there is room for it or not."""
        size_bytes += OVERHEAD_BYTES
        self._bucket.spend(size_bytes, self._clock.monotonic())
        self.quota.spend(size_bytes)
        self.sent_bytes += size_bytes

    async def next_beat(self, size_bytes: int) -> None:
        """A heartbeat of so many bytes went out: count it, and wait until the next one is due."""
        self.spent(size_bytes)
        self._beat_bytes = size_bytes + OVERHEAD_BYTES
        begun = self._clock.monotonic()
        while (left_s := begun + self.heartbeat_s - self._clock.monotonic()) > 0:
            await self._wait(min(left_s, LOOK_S))

    @property
    def heartbeat_s(self) -> float:
        """Seconds from one heartbeat to the next, as long as nothing changes."""
        scarce_s = SCARCE_BEAT_S if self.quota.reached == "all" else 0.0
        rates = [self.rate.bytes_per_s_max, (self.quota.bytes_per_day or 0) / DAY_S]
        shares = [self._beat_bytes / (rate * BEAT_SHARE) for rate in rates if rate]
        return max(self._settings.heartbeat_s, scarce_s, *shares)

    @property
    def message_bytes_max(self) -> int:
        """How large a message should be at most: MESSAGE_S of the rate, a tenth of the quota."""
        most, rate = self._settings.payload_bytes_max, self.rate.bytes_per_s_max
        if rate is not None:
            most = min(most, max(MESSAGE_BYTES_MIN, int(rate * MESSAGE_S)))
        if self.quota.bytes_per_day is not None:
            most = min(most, self.quota.bytes_per_day // 10)
        return most

    def _wake(self) -> None:
        for turn in self._waiting:
            _let_go(turn)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until something has changed."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.add(turn)
        timer = loop.call_later(seconds, _let_go, turn)
        try:
            await turn
        finally:
            timer.cancel()
            self._waiting.discard(turn)


def in_time(orders: Orders, now: float) -> Orders:
    """Those whose time is not over."""
    paused, limit = orders.paused_until, orders.limit_bytes_per_s
    if paused is not None and paused <= now:
        paused = None
    if orders.limit_until <= now:
        limit = None
    return Orders(paused, limit, math.inf if limit is None else orders.limit_until)


def _let_go(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
