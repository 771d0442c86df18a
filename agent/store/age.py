"""How old a record is: by the monotonic clock, carried over reboots, never by wall time.

Limits  : the time in which the machine was off is not seen, so it does not count.
Format  : table boots. The store's own clock runs on through the boots: it is `base_ns` of a boot
          plus the monotonic reading in it.
Recovery: a boot whose end was not seen counts as long as it was seen last, at most SEEN_S short.
"""

import sqlite3

from agent.records import Stamp

SEEN_S = 10.0  # how often a boot's progress is noted


class Ages:
    """The store's own clock; used in the store's thread alone."""

    def __init__(self) -> None:
        self._bases: dict[str, int] = {}
        self._noted_ns = 0

    def begin(self, connection: sqlite3.Connection, now: Stamp) -> None:
        """The file was opened in this boot."""
        connection.execute(
            "INSERT OR IGNORE INTO boots (boot, base_ns, seen_ns)"
            " SELECT ?, coalesce(max(base_ns + seen_ns), 0), 0 FROM boots",
            (now.boot,),
        )
        self.look(connection, now)
        self._noted_ns = 0

    def look(self, connection: sqlite3.Connection, now: Stamp) -> None:
        """Know the boots of a file, also one that this boot has not opened; nothing is written."""
        self._bases = dict(connection.execute("SELECT boot, base_ns FROM boots").fetchall())
        if now.boot not in self._bases:
            (ended,) = connection.execute("SELECT max(base_ns + seen_ns) FROM boots").fetchone()
            self._bases[now.boot] = ended or 0

    def note(self, connection: sqlite3.Connection, now: Stamp) -> None:
        """This boot was seen alive; written every SEEN_S at most."""
        if now.mono_ns - self._noted_ns >= SEEN_S * 1e9:
            connection.execute(
                "UPDATE boots SET seen_ns = max(seen_ns, ?) WHERE boot = ?", (now.mono_ns, now.boot)
            )
            self._noted_ns = now.mono_ns

    def forget(self) -> None:
        """What was noted last was rolled back."""
        self._noted_ns = 0

    def age_s(self, made: Stamp, now: Stamp) -> float:
        """Seconds of running time since a record was made, with what is known of its boot."""
        begun = self._bases.get(made.boot, 0) + made.mono_ns
        return max(0.0, (self._bases[now.boot] + now.mono_ns - begun) / 1e9)


def boot_begin_ns(connection: sqlite3.Connection, boot: str) -> int:
    """Where a boot in which the file was opened begins on the store's own clock."""
    row = connection.execute("SELECT base_ns FROM boots WHERE boot = ?", (boot,)).fetchone()
    return int(row[0])
