"""How fast the store's disk wears, by source, and how long it lasts at that rate.

What is not told by the kernel is unknown (None) and never guessed. A rate is an average over all
running time that was seen, under this and former starts.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypedDict

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.health.conditions import Conditions
from agent.host.disk import SOURCES, Writes
from agent.store.wear import Wear, Written
from agent.threads import apart

RATED_AFTER_S = 60.0  # what a start writes says nothing of a day
NOTE_S = 600.0  # a commit each: what measures the wear must not be part of it
JUDGED_AFTER_S = 3600.0
DAY_S = 86_400.0
YEAR_S = 365.25 * DAY_S
TB_BYTES = 1e12


class WrittenShown(TypedDict):
    """What was written in so many seconds of running time; a rate only after some of it."""

    bytes: int
    running_s: float
    bytes_per_day: int | None


class FlashShown(TypedDict):
    """How the disk wears: what the process and all on its device wrote, what producers brought.

    `life_time` is what an eMMC says of itself, `life_years` what is left of its endurance.
    """

    device: str | None
    life_time: str | None
    sources: dict[str, WrittenShown | None]
    payload: dict[str, WrittenShown]
    write_amplification: float | None
    endurance_tb_written: float | None
    life_years: float | None


class Flash:
    """Open with `async with`, while the store is open."""

    def __init__(
        self,
        settings: Settings,
        wear: Wear,
        conditions: Conditions,
        clock: Clock,
        writes: Callable[[Path], Writes] = Writes,
    ) -> None:
        """`writes` makes the reader of the kernel's counts for a folder; it may block."""
        self._settings = settings
        self._wear = wear
        self._conditions = conditions
        self._clock = clock
        self._make_writes = writes
        self._writes: Writes
        self._totals: dict[str, Written] = {}
        self._begun: dict[str, Written] = {}  # the totals at the start
        self._taken_begun: dict[str, int] = {}  # payload ever, at the start
        self._begun_at = 0.0  # monotonic
        self._seen: dict[str, int] = {}  # the counts at the last look
        self._seen_at = 0.0  # monotonic

    async def __aenter__(self) -> Self:
        folder = Path(self._settings.path).parent
        self._writes = await apart(lambda: self._make_writes(folder))
        self._begun = await self._wear.noted()
        self._totals = dict(self._begun)
        self._taken_begun = await self._taken_since()
        self._begun_at = self._clock.monotonic()
        self._count()
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(StoreError):  # then the totals stay as they were noted last
            await self.note()

    async def run(self) -> None:
        """Judge and note, for ever."""
        while True:
            self.judge()
            await asyncio.sleep(NOTE_S)
            with suppress(StoreError):  # the parts that need the store say so
                await self.note()

    async def note(self) -> None:
        """Keep the totals. Raises StoreError."""
        self._count()
        await self._wear.note(self._totals)

    def written_bytes(self) -> dict[str, int]:
        """Bytes written since the start, by source: those that are told."""
        self._count()
        return {
            source: self._totals[source].bytes - self._begun.get(source, Written()).bytes
            for source in self._seen
        }

    def life_years(self) -> float | None:
        """Years that the disk lasts at this rate; None: not known, or not yet."""
        endurance, device = self._settings.endurance_tb_written, self._total("device")
        if endurance is None or device is None or not device.bytes:
            return None
        if device.running_s < JUDGED_AFTER_S:
            return None
        left_bytes = max(0.0, endurance * TB_BYTES - device.bytes)
        return left_bytes / _per_day(device) * DAY_S / YEAR_S

    def judge(self) -> None:
        """Hold or clear the condition."""
        self._count()
        years, years_min = self.life_years(), self._settings.life_years_min
        if years is None or years >= years_min:
            self._conditions.clear("flash_wearing", "store")
            return
        block = self._writes.block
        name = block.name if block else "its disk"
        gib = _per_day(self._totals["device"]) / 2**30
        self._conditions.hold(
            *("flash_wearing", "store", "warning"),
            f"{name} takes {gib:.1f} GiB a day and lasts {years:.1f} years at that rate, less than "
            f"store.life_years_min ({years_min:g})",
            "see `holdfast status` for who writes: keep less audio, move other programs' files, or "
            "plan to replace the disk",
        )

    async def state(self) -> FlashShown:
        """What `status` shows; null where something is unknown. Raises StoreError.

        The payload and the amplification count from the start, `sources` from the first one.
        """
        written = self.written_bytes()
        payload = await self._taken_since()
        payload_bytes, process = sum(payload.values()), written.get("process")
        lasted_s = self._clock.monotonic() - self._begun_at
        block = self._writes.block
        return {
            "device": block.name if block else None,
            "life_time": block.life_time() if block else None,
            "sources": {source: self._rate_of(source) for source in SOURCES},
            "payload": {
                stream: _rate(Written(taken, lasted_s))
                for stream, taken in payload.items()
                if taken
            },
            "write_amplification": (
                process / payload_bytes if process is not None and payload_bytes else None
            ),
            "endurance_tb_written": self._settings.endurance_tb_written,
            "life_years": self.life_years(),
        }

    async def _taken_since(self) -> dict[str, int]:
        """Bytes of payload since the start, by stream."""
        payload = await self._wear.payload()
        return {
            stream: _since(self._taken_begun.get(stream, 0), one.taken_bytes)
            for stream, one in payload.items()
        }

    def _total(self, source: str) -> Written | None:
        """All that is known of a source; None while the kernel does not tell of it."""
        return self._totals[source] if source in self._seen else None

    def _rate_of(self, source: str) -> WrittenShown | None:
        total = self._total(source)
        return None if total is None else _rate(total)

    def _count(self) -> None:
        """Add what was written since the last look."""
        counts, now = self._writes.read(), self._clock.monotonic()
        for source, count in counts.items():
            total = self._totals.setdefault(source, Written())
            if source not in self._seen:
                continue
            grown = _since(self._seen[source], count)
            self._totals[source] = Written(
                total.bytes + grown, total.running_s + now - self._seen_at
            )
        self._seen, self._seen_at = counts, now


def _since(before: int, now: int) -> int:
    """How much a count has grown; a smaller one began anew (a new file, a disk replugged)."""
    return now - before if now >= before else now


def _per_day(total: Written) -> float:
    return total.bytes / total.running_s * DAY_S


def _rate(total: Written) -> WrittenShown:
    known = total.running_s >= RATED_AFTER_S
    return {
        "bytes": total.bytes,
        "running_s": round(total.running_s, 1),
        "bytes_per_day": round(_per_day(total)) if known else None,
    }
