"""The command journal: what makes one effect of each command, whichever door it came by.

Limits  : `rows_max` commands, ended ones among them, for `keep_s` of running time after their end;
          REFUSALS_MAX refusals. One that has not ended is not forgotten: where no other is left to
          be, a new command is refused (JournalFull). Of the others those go first whose result
          somebody has; a result that is forgotten here is a record of stream `commands` yet.
Format  : tables commands, command_refusals, command_horizons, command_counts (sql/0015.sql).
Recovery: `accept` returns after the commit. A command that has begun and not ended was broken off;
          its handler's last step is known. Its end and the record that tells the cloud are one
          commit; where the store has no room for the record, the end is kept without it. Of a file
          that was damaged, journalrows.carry saves what can be read.
"""

import sqlite3
from collections.abc import Callable, Collection
from typing import Literal, TypeVar

from msgspec import Struct

from agent.clock import Clock
from agent.errors import StoreDamaged, StoreFull
from agent.records import Stamp
from agent.store import journalrows as rows
from agent.store.age import boot_begin_ns
from agent.store.database import Database
from agent.store.journalrows import COLUMNS, STREAM, End, Entry, New, Refusal

__all__ = ["End", "Entry", "IdTaken", "Journal", "JournalFull", "Limits", "New", "Refusal"]
T = TypeVar("T")
_UNTOLD = "ended_ns IS NOT NULL AND NOT told"
Untold = Literal["all", "replies", "asked", "others"]
_ONLY: dict[Untold, str] = {
    "all": "",
    "replies": " AND reply IS NOT NULL",
    "asked": " AND (door = 'mqtt' OR reply IS NOT NULL)",
    "others": " AND door != 'mqtt' AND reply IS NULL",
}
REFUSALS_MAX = 1000
FORGOTTEN_MAX = 100  # in one commit
LOCAL, LOCAL_SHARE = ("http", "bundle"), 0.1  # of the commands, kept free for these doors, and
# for what is about a command: who filled the rest may take it back
VERSIONED = "twin"  # the door whose signed documents say how new they are by their version


class JournalFull(StoreFull):
    """As many commands are kept as may be, and none of them can be forgotten."""


class IdTaken(Exception):
    """The id is that of another command."""


class Forgotten(Exception):
    """The command is as old as some that were forgotten: it may have been carried out."""


class Limits(Struct, frozen=True):
    """How many commands are kept, and for how long."""

    rows_max: int = 10_000
    keep_s: float = 30 * 86_400.0


class Journal:
    """Used on the event loop; each call raises StoreError when the store cannot."""

    def __init__(
        self, database: Database, clock: Clock, limits: Limits, kept: Callable[[], None]
    ) -> None:
        """`kept` is called whenever there is more to send."""
        self.limits = limits
        self._database = database
        self._clock = clock
        self._kept = kept

    async def accept(self, new: New) -> tuple[Entry, bool]:
        """Keep a command; it, and whether it is new: a known id names the command that there is.

        Raises IdTaken, Forgotten, JournalFull; then nothing is kept.
        """

        def operation(connection: sqlite3.Connection, stamp: Stamp, now_ns: int) -> Entry | None:
            if rows.find(connection, new.id):
                return None
            dated = new.by and new.door != VERSIONED
            horizon_us = rows.horizon_us(connection, new.by) if dated else None
            if horizon_us is not None and (new.issued_us is None or new.issued_us <= horizon_us):
                raise Forgotten
            self._make_room(connection, new)
            return rows.insert(connection, new, stamp, now_ns)

        if made := await self._write(operation):
            return made, True
        known = await self.get(new.id)
        if known is None:
            raise StoreDamaged(f"command {new.id} is no longer in the store", "order it again")
        if known.digest != new.digest:
            raise IdTaken(known.name)
        return known, False

    def _make_room(self, connection: sqlite3.Connection, new: New) -> None:
        """Raises JournalFull. Who stands before the machine has room where others have none."""
        (waiting,) = connection.execute(
            "SELECT count(*) FROM commands WHERE ended_ns IS NULL"
        ).fetchone()
        kept_free = 0.0 if new.about or new.door in LOCAL else LOCAL_SHARE
        if waiting >= self.limits.rows_max * (1 - kept_free):
            raise JournalFull(
                f"{waiting} commands wait; the rest of commands.rows_max is for local doors",
                "wait until some have ended",
            )
        (count,) = connection.execute("SELECT count(*) FROM commands").fetchone()
        if count < self.limits.rows_max:
            return
        where = (
            "number IN (SELECT number FROM commands WHERE ended_ns IS NOT NULL"
            " ORDER BY told DESC, number LIMIT ?)"
        )
        if not rows.forget(connection, where, (count - self.limits.rows_max + 1,)):
            raise JournalFull(
                f"{count} commands wait or run, as many as commands.rows_max allows",
                "wait until some have ended: holdfast commands ls",
            )

    async def refuse(self, refusal: Refusal) -> int:
        """Keep what was not accepted, and why; its number.

        Of a bundle, the cloud is told in the same commit, by a record as that of an end, once for
        an id and a reason: there may be no other way back than the next bundle. At other doors
        nobody fills the outbox with nonsense.
        """

        def operation(connection: sqlite3.Connection, stamp: Stamp, _: int) -> tuple[int, bool]:
            news = not rows.is_refused(connection, refusal)
            return rows.refuse(connection, refusal, stamp, REFUSALS_MAX), news

        if refusal.door != "bundle" or not refusal.id:
            return await self._write(lambda *given: operation(*given)[0])
        return await self._recorded(
            operation, lambda c, _, stamp: rows.record_refusal(c, refusal, stamp)
        )

    async def begin(self, number: int) -> Entry:
        """Its handler is called now, or once more; where it has ended, it is not."""

        def operation(connection: sqlite3.Connection, _: Stamp, __: int) -> Entry:
            connection.execute(
                "UPDATE commands SET state = 'running', attempts = attempts + 1"
                " WHERE number = ? AND ended_ns IS NULL",
                (number,),
            )
            return rows.one(connection, number)

        return await self._write(operation)

    async def note(self, number: int, step: str) -> None:
        """Its handler has come to this step."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE commands SET attempts = iif(step = ?1, attempts, 1), step = ?1"
                " WHERE number = ?2",
                (step, number),
            )
        )

    async def put_down(self) -> None:
        """The agent ends in order: that is no fault of what is running."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE commands SET attempts = attempts - 1"
                " WHERE ended_ns IS NULL AND attempts > 0"
            )
        )

    async def end(self, number: int, how: End) -> Entry:
        """It has ended; it, as it ended first."""

        return await self._recorded(
            lambda c, stamp, now_ns: rows.end(c, number, how, stamp, now_ns), rows.record
        )

    async def cancel(self, number: int, how: End) -> Entry:
        """It has ended, if it had not begun; it, as it is now. Which of `begin` and this came first
        is settled by their commits."""

        def operation(
            connection: sqlite3.Connection, stamp: Stamp, now_ns: int
        ) -> tuple[Entry, bool]:
            found = rows.one(connection, number)
            if found.state != "accepted":
                return found, False
            return rows.end(connection, number, how, stamp, now_ns)

        return await self._recorded(operation, rows.record)

    async def _recorded(
        self,
        operation: Callable[[sqlite3.Connection, Stamp, int], tuple[T, bool]],
        record: Callable[[sqlite3.Connection, T, Stamp], None],
    ) -> T:
        """Do it and, if `operation` says that it is news, tell the cloud in the same commit.

        Without room for the record it is done all the same.
        """

        def both(connection: sqlite3.Connection, stamp: Stamp, now_ns: int) -> T:
            kept, news = operation(connection, stamp, now_ns)
            if news:
                record(connection, kept, stamp)
            return kept

        try:
            kept = await self._write(both, grows=(STREAM,))
        except StoreFull:
            kept = await self._write(lambda c, stamp, now_ns: operation(c, stamp, now_ns)[0])
        self._kept()
        return kept

    async def told(self, numbers: Collection[int], refusals: Collection[int] = ()) -> None:
        """Somebody has these results; but one that is wanted elsewhere by now is to be told."""

        def operation(connection: sqlite3.Connection) -> None:
            for table, those in (("commands", numbers), ("command_refusals", refusals)):
                connection.executemany(
                    f"UPDATE {table} SET told = 1 WHERE number = ? AND reply IS NULL",
                    [(one,) for one in those],
                )

        await self._database.write(operation)

    async def untold(
        self, count: int, after: int = 0, after_refusal: int = 0, of: Untold = "all"
    ) -> tuple[list[Entry], list[Refusal]]:
        """Results that nobody has, behind these numbers, the oldest first. Of all; or those alone
        that are `asked` for over the link, or not (`others`); with `replies` those that are wanted
        at a place of their own, and were not told there yet."""
        only = _ONLY[of]
        where = f"{_UNTOLD}{only} AND number > ? ORDER BY number"
        return await self._database.read(
            lambda c: (
                _all(c, where, (after, count)),
                rows.refusals(c, f"NOT told{only} AND number > {after_refusal}", count),
            )
        )

    async def untold_of(
        self, numbers: Collection[int], refusals: Collection[int] = ()
    ) -> tuple[list[Entry], list[Refusal]]:
        """Of these the results that nobody has, the oldest first."""
        if not numbers and not refusals:
            return [], []
        commands, refused = (", ".join(map(str, those)) for those in (numbers, refusals))
        where = f"{_UNTOLD} AND number IN ({commands}) ORDER BY number"
        return await self._database.read(
            lambda c: (
                _all(c, where, (len(numbers),)),
                rows.refusals(c, f"NOT told AND number IN ({refused})", len(refusals)),
            )
        )

    async def answering(self, number: int, reply: bytes, *, refusal: bool) -> None:
        """Whoever wants the answer at this place of his own gets it now, and this once: what a
        broker does not let us say there must not be said again and again."""
        table = "command_refusals" if refusal else "commands"
        await self._database.write(
            lambda c: c.execute(
                f"UPDATE {table} SET reply = NULL WHERE number = ? AND reply = ?", (number, reply)
            )
        )

    async def wanted_at(self, number: int, reply: bytes) -> None:
        """Whoever ordered it again wants the answer there, and not where it was wanted before. One
        that has ended is told once more."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE commands SET reply = ?, told = 0 WHERE number = ?", (reply, number)
            )
        )

    async def open(self) -> list[Entry]:
        """Those that have not ended, the oldest first."""
        most = self.limits.rows_max
        return await self._database.read(
            lambda c: _all(c, "ended_ns IS NULL ORDER BY number", (most,))
        )

    async def left_s(self, entry: Entry) -> float | None:
        """Running time until a command expires; None: it does not."""
        if entry.expires_ns is None:
            return None
        due_ns, stamp = entry.expires_ns, self._clock.stamp()
        return await self._database.read(
            lambda c: (due_ns - boot_begin_ns(c, stamp.boot) - stamp.mono_ns) / 1e9
        )

    async def get(self, name: str) -> Entry | None:
        """The command of this id."""
        return await self._database.read(lambda c: rows.find(c, name))

    async def is_open(self, name: str) -> bool:
        """Whether the command of this id is here, and has not ended."""
        entry = await self.get(name)
        return entry is not None and entry.state not in rows.ENDED

    async def page(self, before: int | None, count: int) -> list[Entry]:
        """Up to `count` commands below a number, the newest first."""
        most = before if before is not None else 1 << 62
        return await self._database.read(
            lambda c: _all(c, "number < ? ORDER BY number DESC", (most, count))
        )

    async def refusals(self, count: int) -> list[Refusal]:
        """The newest refusals, the oldest of them first."""

        def operation(connection: sqlite3.Connection) -> list[Refusal]:
            (last,) = connection.execute(
                "SELECT coalesce(max(number), 0) FROM command_refusals"
            ).fetchone()
            return rows.refusals(connection, f"number > {int(last) - count}", count)

        return await self._database.read(operation)

    async def counts(self) -> dict[str, int]:
        """How many were accepted, ended in each way, and were refused for which reason."""
        return await self._database.read(
            lambda c: dict(c.execute("SELECT event, count FROM command_counts").fetchall())
        )

    async def waiting(self) -> tuple[int, int]:
        """How many have not ended, and how many results, refusals too, nobody has."""

        def operation(connection: sqlite3.Connection) -> tuple[int, int]:
            def count(what: str) -> int:
                (number,) = connection.execute(f"SELECT count(*) FROM {what}").fetchone()
                return int(number)

            untold = count("commands WHERE ended_ns IS NOT NULL AND NOT told")
            untold += count("command_refusals WHERE NOT told")
            return count("commands WHERE ended_ns IS NULL"), untold

        return await self._database.read(operation)

    async def forget_old(self) -> int:
        """Forget what ended `keep_s` ago; how many, FORGOTTEN_MAX at most."""
        keep_ns = int(self.limits.keep_s * 1e9)
        where = (
            "number IN (SELECT number FROM commands WHERE ended_ns < ?"
            f" ORDER BY number LIMIT {FORGOTTEN_MAX})"
        )
        return await self._write(lambda c, _, now_ns: rows.forget(c, where, (now_ns - keep_ns,)))

    async def _write(
        self,
        operation: Callable[[sqlite3.Connection, Stamp, int], T],
        grows: Collection[str] = (),
    ) -> T:
        """Run `operation` with the instant of now, also on the store's own clock."""
        stamp = self._clock.stamp()
        return await self._database.write(
            lambda c: operation(c, stamp, boot_begin_ns(c, stamp.boot) + stamp.mono_ns),
            grows=tuple(grows),
        )


def _all(connection: sqlite3.Connection, rest: str, values: tuple[int, ...]) -> list[Entry]:
    """The rows for which `rest` holds, in its order; the last of `values` is how many at most."""
    found = connection.execute(f"SELECT {COLUMNS} FROM commands WHERE {rest} LIMIT ?", values)
    return [rows.entry(row) for row in found]
