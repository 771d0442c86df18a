"""The way in for records: as durable as their class says, and the answer says so too.

Limits  : a record's body and blob are the caller's to bound; a group holds 1,000 calls. What is in
          memory alone is bounded by volatile.py.
Format  : rows of `records` and `chunks` (streams.py).
Recovery: `sync` and `group` are answered after the commit that holds them, fsynced; a crash before
          leaves nothing of them, after it leaves all. `volatile` is answered at once, and a crash
          may take it: then it is counted (volatile.py).
"""

import time
from collections.abc import Callable, Sequence
from enum import StrEnum

from msgspec import Struct

from agent.clock import Clock
from agent.config import StreamRule
from agent.store import streams
from agent.store.database import Database
from agent.store.streams import Item, New
from agent.store.volatile import Volatile

__all__ = ["Durability", "Intake", "New", "Receipt"]


class Durability(StrEnum):
    """How safe a record is when the call returns; the strictest first.

    `sync`: in a commit of its own; `group`: in a commit shared with what came meanwhile;
    `volatile`: in memory, and in the file a little later.
    """

    SYNC = "sync"
    GROUP = "group"
    VOLATILE = "volatile"


_STRICTNESS = list(Durability)


class Receipt(Struct, frozen=True):
    """What became of an append: its seqs first..last, how safe they are, and what that took.

    `commit_s` is from the call to the end of the commit (volatile: to the answer), in seconds.
    """

    first: int
    last: int
    durability: Durability
    commit_s: float


class Intake:
    """Appends to streams; used from the event loop's thread alone."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        rule: Callable[[str], StreamRule],
        volatile: Volatile,
        kept: Callable[[], None],
    ) -> None:
        """`rule` is the one that counts for a stream; `kept` is called when there is more."""
        self._database = database
        self._clock = clock
        self._rule = rule
        self._volatile = volatile
        self._kept = kept
        self._ruled: dict[str, Durability] = {}

    async def append(
        self, stream: str, records: Sequence[New], durability: Durability | None = None
    ) -> Receipt:
        """Keep records, at least one, in this order and without a gap between their seqs.

        The stricter of `durability` and the class of the stream's rule counts, and stands in the
        receipt; volatile records that are too large for memory go as a group. Raises StoreFull or
        StoreError; then nothing of them was kept.
        """
        begun = time.perf_counter()
        ruled = self._ruled.get(stream) or self._find_rule(stream)
        counts = min(ruled, durability, key=_STRICTNESS.index) if durability else ruled
        item = (stream, self._clock.stamp(), records)
        if ruled is Durability.VOLATILE:  # some may be in memory, which come first
            last, counts = await self._behind_others(item, counts)
        else:
            alone = counts is Durability.SYNC
            last = await self._database.put(streams.append_all, item, item[:1], alone=alone)
            self._kept()
        took_s = time.perf_counter() - begun
        return Receipt(last - len(records) + 1, last, counts, took_s)

    async def _behind_others(self, item: Item, counts: Durability) -> tuple[int, Durability]:
        if counts is Durability.VOLATILE and streams.item_bytes(item) > self._volatile.bytes_max:
            counts = Durability.GROUP
        if counts is Durability.VOLATILE:
            return await self._volatile.append(item), counts
        alone = counts is Durability.SYNC
        return await self._volatile.append_stricter(item, alone=alone), counts

    def _find_rule(self, stream: str) -> Durability:
        """The class of a stream's rule, kept: there are only so many streams."""
        ruled = self._ruled[stream] = Durability(self._rule(stream).durability)
        return ruled
