"""When the clock was trusted: what UTC the monotonic stamps of a boot stand for.

Limits  : PER_BOOT_MAX bindings of a boot (the first one stays, then the newest), BOOTS_MAX boots.
          Those of boots before the oldest held record go when the next one comes.
Format  : table bindings (sql/0006.sql), one row for each time that the wall clock, synchronised,
          was seen MOVED_US away from where the last binding of its boot has it.
Recovery: a record of a boot without one keeps its wall label, and is told to be unbound. It is
          dated when it is given out, so a binding that comes later dates what was made before.
"""

import sqlite3
from bisect import bisect_left
from itertools import pairwise

from msgspec import Struct

from agent.clock import Clock
from agent.records import Stamp
from agent.store.database import Database

MOVED_US = 50_000
PER_BOOT_MAX = 100
BOOTS_MAX = 1000


class Binding(Struct, frozen=True):
    """At `mono_ns` of its boot it was `utc_us`."""

    mono_ns: int
    utc_us: int

    def utc_us_at(self, mono_ns: int) -> int:
        """The time at another instant of the boot."""
        return self.utc_us + (mono_ns - self.mono_ns) // 1000


class Bindings:
    """The table, and a copy of it in memory, which any thread may ask."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        # By boot: its bindings, and the instants at which the next one becomes the nearest.
        self._boots: dict[str, tuple[list[Binding], list[int]]] = {}

    async def load(self) -> None:
        """Take the file's bindings into memory."""
        self._know(await self._database.read(_all))

    def _know(self, boots: dict[str, list[Binding]]) -> None:
        self._boots = {
            boot: (bound, [(a.mono_ns + b.mono_ns) // 2 for a, b in pairwise(bound)])
            for boot, bound in boots.items()
        }

    async def bind(self) -> None:
        """The clock is synchronised now: note it, if that is new. Raises StoreError."""
        now = self._clock.stamp()

        def operation(connection: sqlite3.Connection) -> dict[str, list[Binding]]:
            _add(connection, now)
            _forget_old(connection, now.boot)
            return _all(connection)

        known = await self._database.read(_all)
        if _moved(known.get(now.boot, []), now):
            known = await self._database.write(operation)
        self._know(known)

    def dated(self, boot: str, mono_ns: int, wall_us: int) -> tuple[Stamp, bool]:
        """A stamp with the UTC of the nearest binding in its boot, and whether there is one."""
        if boot not in self._boots:
            return Stamp(boot, mono_ns, wall_us), False
        bound, middles = self._boots[boot]
        near = bound[bisect_left(middles, mono_ns)]
        return Stamp(boot, mono_ns, near.utc_us_at(mono_ns)), True


def _moved(bound: list[Binding], now: Stamp) -> bool:
    """Whether the last of a boot's bindings, if any, is not what the clock says now."""
    return not bound or abs(bound[-1].utc_us_at(now.mono_ns) - now.wall_us) > MOVED_US


def _all(connection: sqlite3.Connection) -> dict[str, list[Binding]]:
    """By boot, each in order."""
    boots: dict[str, list[Binding]] = {}
    for boot, mono_ns, utc_us in connection.execute(
        "SELECT boot, mono_ns, utc_us FROM bindings ORDER BY boot, mono_ns"
    ):
        boots.setdefault(boot, []).append(Binding(mono_ns, utc_us))
    return boots


def _add(connection: sqlite3.Connection, now: Stamp) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO bindings (boot, mono_ns, utc_us) VALUES (?, ?, ?)",
        (now.boot, now.mono_ns, now.wall_us),
    )
    connection.execute(
        "DELETE FROM bindings WHERE boot = :boot"
        " AND mono_ns > (SELECT min(mono_ns) FROM bindings WHERE boot = :boot)"
        " AND mono_ns <= (SELECT mono_ns FROM bindings WHERE boot = :boot"
        f" ORDER BY mono_ns DESC LIMIT 1 OFFSET {PER_BOOT_MAX - 1})",
        {"boot": now.boot},
    )


def _forget_old(connection: sqlite3.Connection, boot: str) -> None:
    """Bindings of boots before that of the oldest held record, and beyond BOOTS_MAX.

    The first record of a stream is of its oldest boot, so that one look into each is enough.
    """
    connection.execute(
        "DELETE FROM bindings WHERE boot IN (SELECT boot FROM boots WHERE boot != :boot"
        " AND number < (SELECT coalesce(min(number), :last) FROM boots WHERE boot IN"
        " (SELECT boot FROM streams JOIN records ON records.id ="
        " (SELECT min(id) FROM records WHERE id BETWEEN streams.id << 40"
        " AND (streams.id + 1 << 40) - 1))))",
        {"boot": boot, "last": 1 << 62},
    )
    connection.execute(
        "DELETE FROM bindings WHERE boot NOT IN"
        f" (SELECT boot FROM bindings GROUP BY boot ORDER BY max(id) DESC LIMIT {BOOTS_MAX})"
    )
