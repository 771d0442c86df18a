"""What an operator decides about held records: to give them up, or to have them tried again.

Limits  : a step is a transaction of STEP_RECORDS records at most; a call takes CALL_S, and says
          where the next goes on.
Format  : drops with the reason `operator`; dead.retry (sql/0009.sql). The ledger's reasons are a
          small fixed set, for they are summed, sent and graphed: why somebody gave a record up is
          free text, and stands in the agent's log.
Recovery: each step counts what it gives up in its own transaction. After a crash the range is given
          up as far as the steps came; asking again goes on there.

What is leased is refused. The far side may have stored it already: its ack would come for a record
counted as dropped, and both sides would disagree about it for ever, though each ledger balanced.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct

from agent.errors import NotNow, NotThere, StoreDamaged
from agent.records import Range, RecordType
from agent.store import blobs, streams
from agent.store.bounds import Out
from agent.store.database import Database
from agent.store.outbox import Name
from agent.store.spool import heard_of, spans

OPERATOR = "operator"
STEP_RECORDS = 256
STEP_DEAD = 32  # their sound is read too
CALL_S = 2.0


class Dropped(Struct, frozen=True):
    """How many records were given up, and the seq from where to go on (None: it is done)."""

    dropped: int
    next: int | None


class Retried(Struct, frozen=True):
    """How many dead letters are to be tried again, which cannot be, and where to go on.

    `sending` of them are the link's: they are sent again. The others are heard again.
    """

    retrying: int
    damaged: list[int]
    next: int | None
    sending: int = 0


class Decisions:
    """Changes what is held, in bounded steps."""

    def __init__(self, database: Database, out: Out, kept: Callable[[], None]) -> None:
        """`out` is `Outbox.out`, asked in the store's thread; `kept` is called when there is more
        to send."""
        self._database = database
        self._out = out
        self._kept = kept

    async def drop(self, name: Name, span: Range) -> Dropped:
        """Give up the held records of `span`, and count them under `operator`.

        Raises NotThere for a stream or a seq that never was, NotNow when one of them is leased;
        then the steps before it stay done.
        """
        end = time.monotonic() + CALL_S
        dropped, first = 0, span.first
        while True:
            step = Range(first, span.last)
            count, following = await self._database.write(partial(self._drop, name=name, span=step))
            dropped += count
            if following is None or time.monotonic() >= end:
                return Dropped(dropped, following)
            first = following

    def _drop(
        self, connection: sqlite3.Connection, name: Name, span: Range
    ) -> tuple[int, int | None]:
        stream, produced = self._row(connection, name)
        if not 1 <= span.first <= span.last <= produced:
            raise NotThere(
                f"{name[1]} has the seqs 1 to {produced}, not all of {_said(span)}",
                "name seqs that it has, the first before the last",
            )
        rows = connection.execute(
            "SELECT seq FROM records WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
            (*streams.keys(stream, span), STEP_RECORDS + 1),
        )
        seqs = [seq for (seq,) in rows.fetchall()]
        for leased in self._out(*name):
            if any(leased.first <= seq <= leased.last for seq in seqs[:STEP_RECORDS]):
                raise NotNow(
                    f"{name[1]} {_said(leased)} is out to the far side, which may have stored it",
                    "try again once that is acknowledged, or give up what comes behind "
                    f"#{leased.last}",
                )
        for one in spans(seqs[:STEP_RECORDS]):
            streams.drop(connection, stream, one, OPERATOR)
        more = len(seqs) > STEP_RECORDS
        return min(len(seqs), STEP_RECORDS), seqs[STEP_RECORDS] if more else None

    async def retry(self, name: Name, seqs: Sequence[int] = (), first: int = 1) -> Retried:
        """Have dead letters tried again: these, or all from `first` on.

        Raises NotThere when one of these is no dead letter, NotNow when one is damaged; then
        nothing was changed. Where all were asked for, the answer names the damaged ones.
        """
        if seqs:
            retried = await self._database.write(lambda c: self._retry_these(c, name, seqs))
        else:
            retried = await self._retry_all(name, first)
        if retried.sending:
            self._kept()
        return retried

    async def _retry_all(self, name: Name, first: int) -> Retried:
        end = time.monotonic() + CALL_S
        total, sending, damaged = 0, 0, list[int]()
        while True:
            step = await self._database.write(partial(self._retry, name=name, first=first))
            total, damaged = total + step.retrying, damaged + step.damaged
            sending += step.sending
            if step.next is None or time.monotonic() >= end:
                return Retried(total, damaged, step.next, sending)
            first = step.next

    def _retry_these(
        self, connection: sqlite3.Connection, name: Name, seqs: Sequence[int]
    ) -> Retried:
        stream, _ = self._row(connection, name)
        asked = sorted(set(seqs))
        dead = [seq for seq in asked if _is_dead(connection, stream, seq)]
        if alive := sorted(set(asked) - set(dead)):
            raise NotThere(
                f"{name[1]} {_listed(alive)}: no dead letter",
                f"`holdfast outbox show {name[1]} --dead` lists them",
            )
        if damaged := [seq for seq in dead if not _whole(connection, stream, seq)]:
            raise NotNow(
                f"{name[1]} {_listed(damaged)}: damaged on the disk, so they cannot be tried again",
                "give it up with `holdfast outbox drop`",
            )
        return Retried(len(dead), [], None, _mark(connection, stream, dead))

    def _retry(self, connection: sqlite3.Connection, name: Name, first: int) -> Retried:
        stream, _ = self._row(connection, name)
        rows = connection.execute(
            "SELECT seq FROM dead WHERE stream = ? AND seq >= ? ORDER BY seq LIMIT ?",
            (stream, first, STEP_DEAD + 1),
        )
        seqs = [seq for (seq,) in rows.fetchall()]
        step = seqs[:STEP_DEAD]
        whole = [seq for seq in step if _whole(connection, stream, seq)]
        sending = _mark(connection, stream, whole)
        damaged = sorted(set(step) - set(whole))
        following = seqs[STEP_DEAD] if len(seqs) > STEP_DEAD else None
        return Retried(len(whole), damaged, following, sending)

    def _row(self, connection: sqlite3.Connection, name: Name) -> tuple[int, int]:
        """A stream's key, and what it produced."""
        epoch, called = name
        row = connection.execute(
            "SELECT id, produced FROM streams WHERE epoch = ? AND name = ?",
            ("" if epoch == self._database.epoch else epoch, called),
        ).fetchone()
        if row is None:
            raise NotThere(
                f"no stream {called!r} of epoch {epoch} in this store",
                "`holdfast outbox ls` lists them, with their epochs",
            )
        return int(row[0]), int(row[1])


def _is_dead(connection: sqlite3.Connection, stream: int, seq: int) -> bool:
    found = connection.execute("SELECT 1 FROM dead WHERE stream = ? AND seq = ?", (stream, seq))
    return found.fetchone() is not None


def _whole(connection: sqlite3.Connection, stream: int, seq: int) -> bool:
    """Whether a dead letter is what was written: its row and its blob, or its sound."""
    row = connection.execute(
        f"SELECT {streams.COLUMNS} FROM records WHERE id = ?", (streams.key(stream, seq),)
    ).fetchone()
    if row is None or not streams.is_whole(row):
        return False
    if not _unsent(connection, stream, seq):
        return row[1] == RecordType.RAW and heard_of(connection, row)[1] is not None
    try:
        return len(blobs.read(connection, row[6], 0, row[7])) == row[7] if row[7] else True
    except StoreDamaged:
        return False


def _unsent(connection: sqlite3.Connection, stream: int, seq: int) -> bool:
    """Whether a dead letter is the link's."""
    found = connection.execute(
        "SELECT 1 FROM dead WHERE stream = ? AND seq = ? AND unsent", (stream, seq)
    )
    return found.fetchone() is not None


def _mark(connection: sqlite3.Connection, stream: int, seqs: Sequence[int]) -> int:
    """Have these tried again; how many of them are the link's."""
    connection.executemany(
        "UPDATE dead SET retry = 1 WHERE stream = ? AND seq = ?", [(stream, seq) for seq in seqs]
    )
    return sum(_unsent(connection, stream, seq) for seq in seqs)


def _said(span: Range) -> str:
    return f"#{span.first}" if span.first == span.last else f"#{span.first} to #{span.last}"


def _listed(seqs: Sequence[int]) -> str:
    """The first few of them."""
    more = f" and {len(seqs) - 5} more" if len(seqs) > 5 else ""
    return ", ".join(f"#{seq}" for seq in seqs[:5]) + more
