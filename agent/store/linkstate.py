"""What the link remembers over a restart: an operator's orders, and what the quota's day has used.

Limits  : one row. An order is kept before it is answered; the used bytes are noted by the caller,
          each NOTE_S at most and at the end, so that counting them wears no disk.
Format  : table link (sql/0011.sql). In memory, instants are monotonic seconds of this boot (below
          zero: before it); in the row they are on the store's own clock, which runs on through the
          boots (age.py). So an order for two hours counts two hours in which the machine ran.
Recovery: a crash forgets the bytes sent since they were noted last: up to NOTE_S of them, at each
          crash. It may prolong an order by the time since the store was written last, by NOTE_S
          too while an order holds for a time. With a damaged file the orders are lost, if it is
          found so at the start; else the caller notes them again in the file that follows.
"""

import math
import sqlite3

from msgspec import Struct

from agent.clock import Clock
from agent.store.age import boot_begin_ns
from agent.store.database import Database

NOTE_S = 60.0


class Orders(Struct, frozen=True):
    """What an operator ordered, and until when; `inf`: until it is taken back.

    `paused_until` None: not paused. `limit_bytes_per_s` None: no order about the rate.
    """

    paused_until: float | None = None
    limit_bytes_per_s: int | None = None
    limit_until: float = math.inf


class Day(Struct, frozen=True):
    """What was sent since the quota began to count.

    `date` is the local day (ISO), '' where it counts from `begun` on, the clock being unknown.
    """

    begun: float
    date: str = ""
    used_bytes: int = 0


class LinkState:
    """Reads and writes the row; every call raises StoreError when the store cannot."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @property
    def epoch(self) -> str:
        """Of the file that serves now: another one does not know what was noted before."""
        return self._database.epoch

    async def read(self) -> tuple[Orders, Day] | None:
        """What was noted last; None in a file where nothing was."""
        boot = self._clock.boot

        def operation(connection: sqlite3.Connection) -> tuple[Orders, Day] | None:
            row = connection.execute(
                "SELECT paused, paused_until_ns, limit_bytes, limit_until_ns, day, day_begun_ns,"
                " day_used_bytes FROM link"
            ).fetchone()
            if row is None:
                return None
            paused, paused_ns, limit, limit_ns, date, begun_ns, used_bytes = row
            base_ns = boot_begin_ns(connection, boot)
            until = _instant(paused_ns, base_ns) if paused else None
            orders = Orders(until, limit, _instant(limit_ns, base_ns))
            return orders, Day(_instant(begun_ns, base_ns), date, used_bytes)

        return await self._database.read(operation)

    async def write(self, orders: Orders, day: Day) -> None:
        """Keep these in place of the former; returns when they are durable."""
        boot = self._clock.boot

        def operation(connection: sqlite3.Connection) -> None:
            base_ns = boot_begin_ns(connection, boot)
            paused = orders.paused_until is not None
            connection.execute(
                "INSERT OR REPLACE INTO link VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(paused, _noted_ns(orders.paused_until, base_ns)),
                    *(orders.limit_bytes_per_s, _noted_ns(orders.limit_until, base_ns)),
                    *(day.date, _noted_ns(day.begun, base_ns), day.used_bytes),
                ),
            )

        await self._database.write(operation)


def _instant(noted_ns: int | None, base_ns: int) -> float:
    return math.inf if noted_ns is None else (noted_ns - base_ns) / 1e9


def _noted_ns(instant: float | None, base_ns: int) -> int | None:
    return None if instant in (None, math.inf) else int(instant * 1e9) + base_ns
