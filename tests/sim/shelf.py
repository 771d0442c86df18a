"""One stream of a device in memory, in place of the store: what an uplink asks of an Outbox.

It obeys agent.store.outbox.Outbox for records without blobs and without losses, so that thousands
of devices fit into one process. Nothing of it lies on a disk.
"""

import asyncio
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable

import msgspec

from agent.clock import Clock
from agent.errors import ProtocolError
from agent.records import Balance, Range, Record, Stamp
from agent.store.choice import EVENT_BYTES, FAIR_EACH, Batch
from agent.store.leases import Leases, Name, Spans
from agent.store.outbox import Buried, Settled, Waiting

EPOCH, STREAM = "e" * 16, "sensor"
DAY_US = 86_400_000_000


def _reading(chance: random.Random) -> bytes:
    """All of a body behind its number: with that, some 440 bytes of JSON, as of a sensor."""
    read = {f"channel_{n}": round(chance.gauss(20, 3), 3) for n in range(20)}
    return msgspec.json.encode({"line": "press", "unit": "mm/s", **read})[1:]


READINGS = [_reading(random.Random(n)) for n in range(1000)]


def body(seq: int) -> bytes:
    """What the record of this seq says, on every device."""
    return b'{"n":%d,' % seq + READINGS[seq % len(READINGS)]


class Shelf:
    """Records 1 to `produced`; those of `fill` are a day old, those of `add` of now."""

    def __init__(self, clock: Clock) -> None:
        self.more = asyncio.Event()
        self.name: Name = (EPOCH, STREAM)
        self.dead: list[int] = []
        self._clock = clock
        self._stamps: list[Stamp] = []
        self._stored = Spans()  # what the far side has
        self._leases = Leases()

    @property
    def produced(self) -> int:
        """How many there ever were."""
        return len(self._stamps)

    @property
    def delivered(self) -> int:
        """How many of them the far side has."""
        return sum(span.last - span.first + 1 for span in self._stored)

    @property
    def balance(self) -> Balance:
        """The ledger."""
        return Balance(self.produced, self.delivered, self.produced - self.delivered, {})

    def fill(self, count: int) -> None:
        """A backlog; before all else."""
        assert not self._stamps
        now = self._clock.stamp()
        old = (Stamp("before", n, now.wall_us - DAY_US + n) for n in range(count))
        self._stamps = list(old)
        self.more.set()

    def add(self) -> None:
        """One more, now."""
        self._stamps.append(self._clock.stamp())
        self.more.set()

    async def lease(
        self, records_max: int, bytes_max: int, live_s: float = 0.0, *, live_only: bool = False
    ) -> Batch | None:
        """As Outbox's."""
        free = self._free(Range(1, self.produced))
        live = list(free.from_on(self._first_live(live_s)))
        fair = (self._leases.count + 1) % FAIR_EACH == 0 and not live_only
        if live and not fair:
            return self._taken(live[0], records_max, bytes_max, live=True)
        for gap in [] if live_only else free:
            return self._taken(gap, records_max, bytes_max)
        return None

    async def lease_span(
        self, name: Name, span: Range, records_max: int, bytes_max: int
    ) -> Batch | None:
        """As Outbox's."""
        for gap in self._free(span, held_back=True) if name == self.name else []:
            return self._taken(gap, records_max, bytes_max)
        return None

    def out(self, epoch: str, stream: str) -> list[Range]:
        """As Outbox's."""
        return self._leases.out((epoch or EPOCH, stream))

    def again(self, name: Name) -> set[int]:
        """As Outbox's: none."""
        return self._leases.again(name)

    def release(self, name: Name, span: Range) -> None:
        """As Outbox's."""
        self._leases.release(name, span)
        self.more.set()

    def rewind(self, name: Name | None = None) -> None:
        """As Outbox's."""
        self._leases.rewind(name)
        self.more.set()

    def hold_back(self, name: Name, span: Range) -> None:
        """As Outbox's."""
        self._leases.hold_back(name, span)
        self.more.set()

    def let_go(self, name: Name, span: Range) -> None:
        """As Outbox's."""
        self._leases.let_go(name, span)
        self.more.set()

    def waits(self, name: Name) -> bool:
        """As Outbox's."""
        return bool(self._leases.out(name))

    async def bury(self, name: Name, seq: int, cause: str) -> bool:
        """Note it: nothing is to be given up here."""
        return bool(await self.bury_span(name, Range(seq, seq), cause))

    async def bury_span(self, name: Name, span: Range, cause: str) -> int:
        """As `bury`."""
        self.dead += range(span.first, span.last + 1)
        self.hold_back(name, span)
        return span.last - span.first + 1

    async def buried(self) -> list[Buried]:
        """As Outbox's: nothing."""
        return []

    async def waiting(self) -> list[Waiting]:
        """As Outbox's; the size of a body is that of the last one."""
        held = self.balance.held
        return [Waiting(self.name, 5, held, held * len(body(self.produced)), 0.0)] if held else []

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """There are none."""
        raise AssertionError(f"#{record.seq} has no blob")

    async def acknowledge(
        self,
        name: Name,
        spans: Iterable[Range],
        unstored: Iterable[Range] = (),
        sending: Callable[[], Iterable[int]] = tuple,
        carried: Iterable[Range] = (),
        tail: tuple[int, int] | None = None,
        *,
        sure: bool = False,
    ) -> Settled:
        """As Outbox's; nothing is ever dead here."""
        if name != self.name:
            return Settled(0, 0, moved=False)
        spans, had, before = list(spans), self.delivered, self._mark
        if any(span.last > self.produced for span in spans):
            raise ProtocolError(f"an ack beyond #{self.produced}")
        for span in spans:
            self._stored.add(span)
        self._leases.settle(name, spans, self._mark)
        return Settled(self.delivered - had, self._mark, moved=self._mark > before)

    @property
    def _mark(self) -> int:
        return next((span.last for span in self._stored if span.first == 1), 0)

    def _first_live(self, live_s: float) -> int:
        """The first seq that is younger; one too many, where none is."""
        now = self._clock.stamp()
        since = now.mono_ns - int(live_s * 1e9)
        old = bisect_left(
            self._stamps, True, key=lambda s: s.boot == now.boot and s.mono_ns >= since
        )
        return old + 1

    def _free(self, span: Range, *, held_back: bool = False) -> Spans:
        free = self._leases.free(self.name, span, held_back=held_back)
        for there in self._stored:
            free.remove(there)
        return free

    def _taken(self, gap: Range, records_max: int, bytes_max: int, *, live: bool = False) -> Batch:
        """Its first records, leased."""
        records: list[Record] = []
        for seq in range(gap.first, min(gap.last, gap.first + records_max - 1) + 1):
            text, stamp = body(seq), self._stamps[seq - 1]
            bytes_max -= len(text) + EVENT_BYTES
            if bytes_max < 0 and records:
                break
            records.append(Record(STREAM, seq, "sensor.v1", stamp, text, timebound=True))
        span = Range(gap.first, records[-1].seq)
        self._leases.take(self.name, span, self._leases.moment)
        return Batch(*self.name, records, [], span, live)
