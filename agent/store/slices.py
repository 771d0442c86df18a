"""Long reads in slices, so that no commit waits for more than one of them.

Limits  : a slice takes SLICE_S of the store's thread, and what its last row takes beyond that; one
          slice at a time, whoever asks.
Format  : none.
Recovery: a slice is a read transaction of its own. Between two of them anything may have changed:
          who reads on says in a key where it stopped, never in a count of rows.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
Over = Callable[[], bool]  # whether the slice has had its time
SLICE_S = 0.005


class Readable(Protocol):
    """A store that can be read: the agent's own (Database), or a file that none holds (Still)."""

    @property
    def epoch(self) -> str:
        """The identity born with the file."""

    async def read(
        self, operation: Callable[[sqlite3.Connection], T], *, patient: bool = False
    ) -> T:
        """As `Database.read`."""


class Slices:
    """Reads a store slice by slice."""

    def __init__(self, store: Readable, clock_s: Callable[[], float] = time.perf_counter) -> None:
        """`clock_s` gives seconds; it is asked in the store's thread."""
        self._store = store
        self._clock_s = clock_s
        self._one = asyncio.Lock()
        self.verifying = asyncio.Lock()  # a count of all rows goes on

    @property
    def epoch(self) -> str:
        """The identity of the store."""
        return self._store.epoch

    async def read(self, operation: Callable[[sqlite3.Connection, Over], T]) -> T:
        """Run `operation`, which returns soon after it is told that its time is over."""

        def timed(connection: sqlite3.Connection) -> T:
            end = self._clock_s() + SLICE_S
            return operation(connection, lambda: self._clock_s() >= end)

        async with self._one:
            return await self._store.read(timed, patient=True)
