"""How long commits take, counted into fixed buckets.

Limits  : len(BOUNDS_S) + 1 counters, whatever comes.
Format  : memory only; it begins at zero with the process.
Recovery: none.
"""

import threading
from bisect import bisect_left
from itertools import accumulate

from msgspec import Struct

# From a good NVMe's commit to a card that is about to die.
BOUNDS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)


class Commits(Struct, frozen=True):
    """How many commits took up to each of BOUNDS_S (those above the last come last), and all."""

    counts: list[int]
    sum_s: float

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts)

    @property
    def cumulative(self) -> list[int]:
        """How many took no longer than each bound; the last is all of them."""
        return list(accumulate(self.counts))


class Latency:
    """Added to by one thread, read by any: a reading is of one moment."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()  # for an instant each time

    def add(self, took_s: float) -> None:
        """One more commit."""
        bucket = bisect_left(BOUNDS_S, took_s)
        with self._lock:
            self._counts[bucket] += 1
            self._sum_s += took_s

    def read(self) -> Commits:
        """What was counted until now."""
        with self._lock:
            return Commits(self._counts.copy(), self._sum_s)
