"""The bounds of what is held, kept at each commit, and what gives way.

Limits  : bytes in all (pages in use, the spool too), bytes and age by stream, from the config.
          One commit gives up at most GIVE_UP_MAX records, so that it stays short; where that is not
          enough, producers are refused while `make_room` goes on in commits of its own.
Format  : streams.bytes and bytes_max; drops with the reasons `evicted` and `expired`.
Recovery: each record is given up in the transaction that counts it.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice

from msgspec import Struct

from agent.clock import Clock
from agent.config import Store as Settings
from agent.config import StreamRule
from agent.errors import StoreFull
from agent.records import Range, Stamp
from agent.store import streams
from agent.store.age import Ages

EVICTED, EXPIRED = "evicted", "expired"
GIVE_UP_MAX = 256
PAGE_BYTES = 4096  # smaller records share pages, and thinning them would free none
EXPIRE_S = 1.0  # how often ages are looked at
DEFAULT = StreamRule(match="*")
Out = Callable[[str, str], list[Range]]  # of epoch and name: what is leased, ascending
_MORE_ROOM = "let the link drain it, raise the bound, or set store.when_full to evict"


class Held(Struct, frozen=True):
    """A stream of which something is held, and not all of it leased: `out` is."""

    key: int
    name: str
    out: list[Range]
    bytes: int
    bytes_mean: float  # of a record
    rule: StreamRule


class Bounds:
    """Used in the store's thread alone."""

    def __init__(self, settings: Settings, clock: Clock, out: Out) -> None:
        """`out` says what of an epoch's stream is leased: that is never given up."""
        self.room_is_wanted = True  # perhaps: the file may come from a wider configuration
        self._settings = settings
        self._clock = clock
        self._out = out
        self._ages = Ages()
        self._looked_at = 0.0
        self._ruled = 0  # the last stream whose rule is in its row

    def begin(self, connection: sqlite3.Connection) -> None:
        """The file was opened: note the boot, and which rule counts for which stream."""
        self._ages.begin(connection, self._clock.stamp())
        self._ruled = 0
        self._rule_new(connection)

    def look(self, connection: sqlite3.Connection) -> None:
        """The file was opened, and nothing can be written."""
        self._ages.look(connection, self._clock.stamp())

    def _rule_new(self, connection: sqlite3.Connection) -> None:
        """Streams get ids in the order they begin."""
        for key, name in connection.execute(
            "SELECT id, name FROM streams WHERE id > ?", (self._ruled,)
        ).fetchall():
            connection.execute(
                "UPDATE streams SET bytes_max = ? WHERE id = ?", (self.rule(name).bytes_max, key)
            )
            self._ruled = max(self._ruled, key)

    def rule(self, name: str) -> StreamRule:
        """The first rule that matches a stream's name; for any thread."""
        return next((r for r in self._settings.streams if fnmatchcase(name, r.match)), DEFAULT)

    def enforce(self, connection: sqlite3.Connection, grown: Collection[str]) -> None:
        """Before a commit. Raises StoreFull when one of the streams that grew crosses a bound."""
        now = self._clock.stamp()
        self._ages.note(connection, now)
        if self._clock.monotonic() - self._looked_at >= EXPIRE_S:
            self._looked_at = self._clock.monotonic()
            self._expire(connection, now)
        if grown:
            self._fit_streams(connection, grown)
            self._fit_all(connection)

    def forget(self) -> None:
        """A transaction was rolled back: what it did, and was noted here, is to be done again."""
        self._ruled = 0
        self._looked_at = -EXPIRE_S
        self._ages.forget()

    def make_room(self, connection: sqlite3.Connection) -> None:
        """Give up what is too old or above the bounds, GIVE_UP_MAX records a bound at most.

        Refuses nobody: what a refused commit would have given up was taken back with it.
        """
        self.room_is_wanted = False
        self._expire(connection, self._clock.stamp())
        self._fit_streams(connection, ())
        with suppress(StoreFull):  # some of it is leased, or there is more of it
            self._fit_all(connection)
        if self._settings.when_full == "refuse":
            self.room_is_wanted = False

    def make_free_pages(self, connection: sqlite3.Connection, bytes_wanted: int) -> None:
        """The disk is full, and `evict` is the rule: give records up until the file has this room.

        Its free pages then go back to the disk (`File.relieve`).
        """
        for _ in self._victims(connection, self._held(connection)):
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            if free * PAGE_BYTES >= bytes_wanted:
                return

    def _fit_all(self, connection: sqlite3.Connection) -> None:
        bytes_max = self._settings.bytes_max
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages * PAGE_BYTES <= self._settings.evict_at * bytes_max:
            return
        used = pages_bytes(connection)
        if used > self._settings.evict_at * bytes_max:
            for _ in self._victims(connection, self._held(connection)):
                used = pages_bytes(connection)
                if used <= self._settings.evict_at * bytes_max:
                    break
        if used > bytes_max:
            self.room_is_wanted = True
            raise StoreFull(f"the store has reached store.bytes_max ({bytes_max})", _MORE_ROOM)

    def _fit_streams(self, connection: sqlite3.Connection, grown: Collection[str]) -> None:
        refused = None
        sql = "SELECT id, name, bytes, bytes_max FROM streams WHERE bytes > bytes_max OR id > ?"
        sql += " ORDER BY id"
        over = connection.execute(sql, (self._ruled,)).fetchall()
        if over and over[-1][0] > self._ruled:  # in the order of their ids
            self._rule_new(connection)
            over = connection.execute(sql, (self._ruled,)).fetchall()
        for key, name, size, bytes_max in over:
            held = [one for one in self._held(connection) if one.key == key]
            for _ in self._victims(connection, held):
                size = _bytes(connection, key)
                if size <= bytes_max:
                    break
            self.room_is_wanted |= size > bytes_max
            if size > bytes_max and name in grown:
                refused = StoreFull(f"{name} has reached its bytes_max ({bytes_max})", _MORE_ROOM)
        if refused:
            raise refused

    def _held(self, connection: sqlite3.Connection) -> list[Held]:
        """What could give way, the least valuable first."""
        rows = connection.execute("SELECT id, epoch, name, bytes, held FROM streams WHERE held > 0")
        found = [
            Held(key, name, self._out(epoch, name), size, size / held, self.rule(name))
            for key, epoch, name, size, held in rows.fetchall()
        ]
        return sorted(found, key=lambda one: (one.rule.priority, -one.bytes))

    def _victims(self, connection: sqlite3.Connection, held: list[Held]) -> Iterator[int]:
        """Give up one record after the other, for as long as the caller asks; their seqs."""
        if self._settings.when_full == "refuse":
            return
        candidates = ((one.key, seq) for one in held for seq in self._in_order(connection, one))
        for key, seq in islice(candidates, GIVE_UP_MAX):
            streams.drop(connection, key, Range(seq, seq), EVICTED)
            yield seq

    def _in_order(self, connection: sqlite3.Connection, one: Held) -> Iterator[int]:
        """A stream's records as they give way: thinned first, then the oldest."""
        if one.rule.thin_every and one.bytes_mean >= PAGE_BYTES:
            yield from self._thinned(connection, one)
        for seq, _ in _free(connection, one):
            yield seq

    def _thinned(self, connection: sqlite3.Connection, one: Held) -> Iterator[int]:
        """Every n-th held record that thinning has not come to yet."""
        (thinned,) = connection.execute(
            "SELECT thinned FROM streams WHERE id = ?", (one.key,)
        ).fetchone()
        seq = thinned
        while True:
            row = connection.execute(
                "SELECT seq FROM records WHERE id > ? AND id <= ? AND seq % ? = 0"
                " ORDER BY id LIMIT 1",
                (*streams.keys(one.key, Range(seq, streams.SEQ_MAX)), one.rule.thin_every),
            ).fetchone()
            if row is None:
                return
            (seq,) = row
            if leased := _leased(one.out, seq):
                seq = leased.last
                continue
            connection.execute("UPDATE streams SET thinned = ? WHERE id = ?", (seq, one.key))
            yield seq

    def _expire(self, connection: sqlite3.Connection, now: Stamp) -> None:
        room = GIVE_UP_MAX
        for one in self._held(connection):
            limit_s = one.rule.age_s_max
            if limit_s is None or room == 0:
                continue
            for seq, made in _free(connection, one):
                if room == 0 or self._ages.age_s(made, now) <= limit_s:
                    break
                streams.drop(connection, one.key, Range(seq, seq), EXPIRED)
                room -= 1


def _free(connection: sqlite3.Connection, one: Held) -> Iterator[tuple[int, Stamp]]:
    """What is held of a stream and not leased, the oldest first, as it is when it is asked for."""
    seq = 0
    while True:
        row = connection.execute(
            "SELECT seq, boot, mono_ns, wall_us FROM records"
            " WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1",
            streams.keys(one.key, Range(seq + 1, streams.SEQ_MAX)),
        ).fetchone()
        if row is None:
            return
        (seq, *made) = row
        if leased := _leased(one.out, seq):
            seq = leased.last
        else:
            yield seq, Stamp(*made)


def _leased(out: list[Range], seq: int) -> Range | None:
    """The span that a seq is out in."""
    at = bisect_left(out, seq, key=lambda span: span.last)
    return out[at] if at < len(out) and out[at].first <= seq else None


def _bytes(connection: sqlite3.Connection, key: int) -> int:
    return int(connection.execute("SELECT bytes FROM streams WHERE id = ?", (key,)).fetchone()[0])


def pages_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the pages in use, the free ones not counted."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int((pages - free) * PAGE_BYTES)
