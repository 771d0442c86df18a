"""What is in the outbox, for those who look: the streams, their records, what was dropped.

Limits  : COUNT_MAX records or ranges in one answer; the next begins where this one says.
Format  : reads alone; streams.py and outbox.py say what lies there.
Recovery: an answer is put together from slices (slices.py): each of its rows was true when it was
          read, and the store may have moved between two of them.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from agent.clock import Clock
from agent.config import StreamRule
from agent.errors import NotThere
from agent.records import Balance, Drop, Range, Stamp
from agent.store import streams
from agent.store.age import Ages
from agent.store.bounds import Out
from agent.store.entries import Account, Entry, Page, Stream, Whole
from agent.store.outbox import UNSETTLED, Name
from agent.store.slices import Over, Slices

COUNT_MAX = 1000
DAMAGED = "its body in the store is damaged"


class _Found(Struct, frozen=True):
    """A stream's row, as far as its records need it."""

    key: int
    name: Name
    settled: int
    sendable: int | None
    out: list[Range]


class Inventory:
    """Looks into a store; changes nothing."""

    def __init__(
        self,
        slices: Slices,
        clock: Clock,
        rule: Callable[[str], StreamRule],
        out: Out,
    ) -> None:
        """`rule` is of a stream's name; `out` is `Outbox.out`."""
        self._slices = slices
        self._clock = clock
        self._rule = rule
        self._out = out

    async def streams(self) -> list[Stream]:
        """Every stream that does not rest, this file's own first, by name."""
        found: list[Stream] = []
        after: int | None = 0
        while after is not None:
            rows, after = await self._slices.read(partial(self._streams, after=after))
            found += rows
        own = self._slices.epoch
        return sorted(found, key=lambda one: (one.epoch != own, one.epoch, one.name))

    def _streams(
        self, connection: sqlite3.Connection, over: Over, after: int
    ) -> tuple[list[Stream], int | None]:
        found = []
        ages, now = Ages(), self._clock.stamp()
        ages.look(connection, now)
        rows = connection.execute(
            "SELECT id, epoch, name, produced, delivered, held, bytes, bytes_max, sendable, settled"
            " FROM streams WHERE id > ? AND NOT resting ORDER BY id",
            (after,),
        )
        with closing(rows):
            for key, *row in rows:
                found.append(self._stream(connection, key, row, ages, now))
                if over():
                    return found, key
        return found, None

    def _stream(
        self, connection: sqlite3.Connection, key: int, row: list[Any], ages: Ages, now: Stamp
    ) -> Stream:
        epoch, name, produced, delivered, held, size, bytes_max, sendable, settled = row
        (dead,) = connection.execute(
            "SELECT count(*) FROM dead WHERE stream = ?", (key,)
        ).fetchone()
        oldest = connection.execute(
            "SELECT seq, boot, mono_ns, wall_us FROM records WHERE id BETWEEN ? AND ?"
            " ORDER BY id LIMIT 1",
            streams.keys(key, Range(0, streams.SEQ_MAX)),
        ).fetchone()
        rule, out = self._rule(name), self._out(epoch, name)
        first = oldest[0] if oldest else None
        return Stream(
            epoch=epoch or self._slices.epoch,
            name=name,
            produced=produced,
            delivered=delivered,
            held=held,
            dropped=_dropped(connection, key),
            bytes=size,
            bytes_max=bytes_max,
            dead=dead,
            settled=settled,
            sendable=sendable,
            leased=out[-1].last if out else 0,
            leased_spans=len(out),
            priority=rule.priority,
            age_s_max=rule.age_s_max,
            oldest_seq=first,
            oldest_age_s=round(ages.age_s(Stamp(*oldest[1:]), now), 1) if oldest else None,
            state="empty" if first is None else _state(first, out, sendable),
        )

    async def ledger(self, ranges_max: int = COUNT_MAX) -> dict[str, dict[str, Account]]:
        """By epoch and stream; with `ranges_max` dropped ranges in all at most."""
        found: dict[str, dict[str, Account]] = {self._slices.epoch: {}}
        for one in await self.streams():
            ranges, following = await self._slices.read(
                partial(self._ranges, name=(one.epoch, one.name), room=ranges_max)
            )
            ranges_max -= len(ranges)
            balance = Balance(one.produced, one.delivered, one.held, one.dropped)
            account = Account(balance, one.settled, ranges, following)
            found.setdefault(one.epoch, {})[one.name] = account
        return found

    def _ranges(
        self, connection: sqlite3.Connection, _: Over, name: Name, room: int
    ) -> tuple[list[Drop], int | None]:
        of = self._found(connection, name)
        drops = _unsettled(connection, of, 1, streams.SEQ_MAX, room + 1)
        return drops[:room], drops[room].first if len(drops) > room else None

    async def page(
        self, name: Name, first: int = 1, count: int = COUNT_MAX, *, dead: bool = False
    ) -> Page:
        """Up to `count` held records from seq `first` on; `dead`: dead letters alone.

        Raises NotThere for a stream that the store does not know.
        """
        records: list[Entry] = []
        seq: int | None = first
        while seq is not None and len(records) < count:
            room = count - len(records)
            lines, seq = await self._slices.read(
                partial(self._lines, name=name, first=seq, count=room, dead=dead)
            )
            records += lines
        drops: list[Drop] = []
        if not dead:
            drops, following = await self._slices.read(
                lambda c, _: self._drops(c, name, first, seq, count)
            )
            if following is not None:
                seq = following
                records = [line for line in records if line.seq < following]
        return Page(*name, records, drops, seq)

    def _lines(
        self,
        connection: sqlite3.Connection,
        over: Over,
        name: Name,
        first: int,
        count: int,
        *,
        dead: bool,
    ) -> tuple[list[Entry], int | None]:
        """Records, and where those behind them begin, if there may be more."""
        of = self._found(connection, name)
        ages, now = Ages(), self._clock.stamp()
        ages.look(connection, now)
        if dead:
            rows = connection.execute(_DEAD_LINES, (of.key, first, count + 1))
        else:
            keys = streams.keys(of.key, Range(first, streams.SEQ_MAX))
            rows = connection.execute(
                f"{_LINES} WHERE records.id BETWEEN ? AND ? ORDER BY records.id LIMIT ?",
                (*keys, count + 1),
            )
        found: list[Entry] = []
        with closing(rows):
            for row in rows:
                if found and (len(found) == count or over()):
                    return found, row[0]
                found.append(_line(row, of, ages, now))
        return found, None

    def _drops(
        self,
        connection: sqlite3.Connection,
        name: Name,
        first: int,
        following: int | None,
        count: int,
    ) -> tuple[list[Drop], int | None]:
        """The page's ranges; where there are too many of them, the seq where it has to end."""
        of = self._found(connection, name)
        last = streams.SEQ_MAX if following is None else following - 1
        drops = _unsettled(connection, of, first, last, count + 1)
        return drops[:count], drops[count].first if len(drops) > count else None

    async def record(self, name: Name, seq: int) -> Whole:
        """One held record with its body. Raises NotThere."""

        def operation(connection: sqlite3.Connection, _: Over) -> Whole:
            of = self._found(connection, name)
            ages, now = Ages(), self._clock.stamp()
            ages.look(connection, now)
            key = streams.key(of.key, min(seq, streams.SEQ_MAX))
            row = connection.execute(f"{_LINES} WHERE records.id = ?", (key,)).fetchone()
            if row is None:
                raise NotThere(
                    f"{name[1]} #{seq} is not held: {_whereabouts(connection, of, seq)}",
                    f"`holdfast outbox show {name[1]}` lists what is",
                )
            stored = connection.execute(
                f"SELECT {streams.COLUMNS} FROM records WHERE id = ?", (key,)
            ).fetchone()
            line = _line(row, of, ages, now)
            return Whole(*of.name, line, row[2], *_content(stored))

        return await self._slices.read(operation)

    def _found(self, connection: sqlite3.Connection, name: Name) -> _Found:
        epoch, called = name
        own = self._slices.epoch
        row = connection.execute(
            "SELECT id, settled, sendable FROM streams WHERE epoch = ? AND name = ?",
            ("" if epoch == own else epoch, called),
        ).fetchone()
        if row is None:
            other = "" if epoch == own else f" of epoch {epoch}"
            raise NotThere(
                f"no stream {called!r}{other} in this store",
                "`holdfast outbox ls` lists them, with their epochs",
            )
        return _Found(row[0], name, row[1], row[2], self._out(*name))


_LINE = (
    "SELECT records.seq, records.type, records.boot, records.mono_ns, records.wall_us,"
    " length(records.body), records.blob_bytes, dead.cause, dead.retry"
)
_LINES = (
    f"{_LINE} FROM records"
    " LEFT JOIN dead ON dead.stream = records.id >> 40 AND dead.seq = records.id & 0xFFFFFFFFFF"
)
_DEAD_LINES = (
    f"{_LINE} FROM dead CROSS JOIN records ON records.id = dead.stream << 40 | dead.seq"
    " WHERE dead.stream = ? AND dead.seq >= ? ORDER BY dead.seq LIMIT ?"
)


def _line(row: tuple[Any, ...], of: _Found, ages: Ages, now: Stamp) -> Entry:
    seq, kind, boot, mono_ns, wall_us, body_bytes, blob_bytes, cause, retry = row
    state = _state(seq, of.out, of.sendable)
    if cause is not None:
        state = "retrying" if retry else "dead"
    age_s = round(ages.age_s(Stamp(boot, mono_ns, wall_us), now), 1)
    return Entry(seq, kind, wall_us, age_s, body_bytes, blob_bytes, state, cause)


def _state(seq: int, out: list[Range], sendable: int | None) -> str:
    if any(span.first <= seq <= span.last for span in out):
        return "leased"
    return "waiting" if sendable is None or seq <= sendable else "not to be sent"


def _content(stored: tuple[Any, ...]) -> tuple[Any, str | None]:
    """The body, or why there is none."""
    try:
        if not streams.is_whole(stored):
            return None, DAMAGED
        return msgspec.json.decode(stored[-1]), None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, "its body is no JSON"


def _dropped(connection: sqlite3.Connection, key: int) -> dict[str, int]:
    return dict(
        connection.execute(
            "SELECT reason, count FROM dropped WHERE stream = ? ORDER BY reason", (key,)
        ).fetchall()
    )


def _unsettled(
    connection: sqlite3.Connection, of: _Found, first: int, last: int, limit: int
) -> list[Drop]:
    """Dropped ranges that reach into first..last and that the far side does not know."""
    mark = max(of.settled, first - 1)
    rows = connection.execute(
        f"SELECT first, last, reason FROM drops WHERE {UNSETTLED} AND first <= :end"
        " ORDER BY first LIMIT :limit",
        {"stream": of.key, "mark": mark, "end": last, "limit": limit},
    )
    return [Drop(*row) for row in rows.fetchall()]


def _whereabouts(connection: sqlite3.Connection, of: _Found, seq: int) -> str:
    """What became of a seq that is not held."""
    (produced,) = connection.execute(
        "SELECT produced FROM streams WHERE id = ?", (of.key,)
    ).fetchone()
    if not 1 <= seq <= produced:
        return f"its seqs are 1 to {produced}" if produced else "nothing was ever produced"
    if seq <= of.settled:
        return "the far side has it, or knows that it was dropped"
    drops = _unsettled(connection, of, seq, seq, 1)
    return f"it was dropped ({drops[0].reason})" if drops else "the far side has it"
