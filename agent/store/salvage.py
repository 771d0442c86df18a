"""What a damaged store file still holds is saved, under the epoch it was made in.

In the background, slice by slice, each record that is whole is written into the outbox of the file
that serves now. What is not whole is counted as `corruption`, so the ledger of the former epoch
balances at every commit: what was not read yet counts as held (streams.quarantined). The link's
dead letters stay dead letters: the far side was told that they are.

Limits  : a slice of wreck.py in one transaction; it keeps to the store's bounds as producers do.
Format  : streams of that epoch; `sendable` is how far each is read. A row of `salvages` each.
Recovery: after a crash it goes on behind `sendable`, in the same transaction with the rows.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from agent.errors import EpochOver, StoreError, StoreFull
from agent.records import Range, Stamp
from agent.store import blobs, quarantine, streams, volatile
from agent.store.database import Database
from agent.store.quarantine import PutAside
from agent.store.wreck import SLICE_ROWS, Former, Slice, Wreck
from agent.threads import apart
from agent.words import counted

log = logging.getLogger("store")
RETRY_S = 5.0
UNKNOWN = "unknown-"  # begins the epoch of a file that does not tell its own


class Salvage:
    """Reads what lies aside, one file after the other."""

    def __init__(self, database: Database, store: Path, kept: Callable[[], None]) -> None:
        """`kept` is called whenever there is more to send."""
        self._database = database
        self._store = store
        self._kept = kept

    async def run(self) -> None:
        """Save what there is to save, for ever."""
        said = ""
        while True:
            self._database.anew.clear()
            try:
                waiting = [one for one in await self.reports() if one.state != "done"]
                # Of one epoch, a file gives more than a head whose file is gone.
                for report in sorted(waiting, key=lambda one: not self._file(one.name).exists()):
                    await self._save(report)
            except EpochOver:
                continue  # from the start, into the new one
            except StoreError as error:
                if said != str(error):
                    said = str(error)
                    log.warning("saving what a damaged file holds waits: %s; %s", said, error.hint)
                await asyncio.sleep(RETRY_S)
            else:
                said = ""
                await self._database.anew.wait()

    async def reports(self) -> list[PutAside]:
        """All files that lie aside and nobody has removed, the oldest first."""

        def operation(connection: sqlite3.Connection) -> list[PutAside]:
            rows = connection.execute(
                "SELECT name, epoch, cause, at_us, state, saved, lost, exact FROM salvages"
                " ORDER BY name"
            )
            found = [PutAside(*(*row, bool(exact))) for *row, exact in rows]
            there = _kept(self._store)
            return [one for one in found if one.name in there or one.state != "done"]

        return await self._database.read(operation)

    def _file(self, name: str) -> Path:
        return quarantine.place(self._store) / name / self._store.name

    async def _save(self, report: PutAside) -> None:
        name = report.name
        if report.state == "waiting":
            log.warning("%s was put aside: %s; saving what it holds", name, report.cause)
        own = self._database.epoch
        wreck = await apart(lambda: Wreck(self._file(name)))
        with wreck:
            epoch = await apart(wreck.epoch)
            epoch = epoch or f"{UNKNOWN}{name}"
            formers = await apart(wreck.streams) if epoch != own else []
            await self._write(own, lambda c: _begin(c, name, epoch, formers, wreck))
            for former in formers:
                whole_name = (former.epoch or epoch, former.name)
                while await self._save_slice(own, name, whole_name, former, wreck):
                    self._kept()
        await self._write(own, lambda c: _state(c, name, "done"))
        for done in await self.reports():
            if done.name == name:  # else somebody has removed it meanwhile
                with suppress(OSError):  # then it is read again, should this file be damaged too
                    quarantine.done(self._store, done)
                said = counted(done.saved, "record")
                log.warning("%s: %s saved, %d lost", name, said, done.lost)

    async def _write(
        self,
        own: str,
        operation: Callable[[sqlite3.Connection], None],
        grows: Sequence[str] = (),
    ) -> None:
        """Into the file of this epoch alone. Raises EpochOver, and as `Database.write`."""

        def guarded(connection: sqlite3.Connection) -> None:
            if self._database.epoch != own:
                raise EpochOver("the file that it is saved into was damaged", "it begins anew")
            operation(connection)

        await self._database.write(guarded, grows=grows)

    async def _save_slice(
        self, own: str, file: str, name: tuple[str, str], former: Former, wreck: Wreck
    ) -> bool:
        """The next records of a stream; False when there were no more."""
        try:
            return await self._save_rows(own, file, name, former, wreck, SLICE_ROWS)
        except StoreFull:  # at a bound there may be room for one at least
            return await self._save_rows(own, file, name, former, wreck, 1)

    async def _save_rows(
        self,
        own: str,
        file: str,
        name: tuple[str, str],
        former: Former,
        wreck: Wreck,
        rows_max: int,
    ) -> bool:
        key, after = await self._database.read(lambda c: _place(c, name))
        if after is None:
            return False
        if wreck.readable:
            piece = await apart(lambda: wreck.slice(former.id, after, former.produced, rows_max))
        else:
            piece = Slice(former.produced, [], [])

        letters = await apart(lambda: wreck.letters(former.id, Range(after + 1, piece.through)))
        piece = _still_held(piece, former.settled, letters)

        def operation(connection: sqlite3.Connection) -> None:
            _keep(connection, file, key, piece)
            connection.executemany(
                "INSERT OR IGNORE INTO dead (stream, seq, cause, retry, unsent)"
                " VALUES (?, ?, ?, ?, 1)",
                [(key, one.seq, *letters[one.seq]) for one in piece.saved if one.seq in letters],
            )
            if piece.through >= former.produced:
                _finish(connection, file, key)

        await self._write(own, operation, grows=name[1:] if piece.saved else ())
        return True


def _still_held(piece: Slice, settled: int, letters: Collection[int]) -> Slice:
    """A slice without what the far side knows: up to `settled` only dead letters are held."""
    saved = [one for one in piece.saved if one.seq > settled or one.seq in letters]
    holes = [Range(max(one.first, settled + 1), one.last) for one in piece.holes]
    return Slice(piece.through, saved, [one for one in holes if one.first <= one.last])


def _kept(store: Path) -> set[str]:
    try:
        return {folder.name for folder in quarantine.kept(store)}
    except OSError as error:
        raise StoreError(f"{store}: {error.strerror}", "check the disk") from error


def _begin(
    connection: sqlite3.Connection, file: str, epoch: str, formers: list[Former], wreck: Wreck
) -> None:
    """Rows for its streams: all that was held is still to be read."""
    _state(connection, file, "reading")
    exact = wreck.readable and bool(formers) and not wreck.guessed
    connection.execute(
        "UPDATE salvages SET epoch = ?, exact = exact AND ? WHERE name = ?", (epoch, exact, file)
    )
    for one in formers:
        letters = wreck.letters(one.id, Range(1, one.settled))  # held below the mark
        read = min(letters, default=one.settled + 1) - 1
        added = connection.execute(
            "INSERT OR IGNORE INTO streams"
            " (epoch, name, produced, delivered, held, quarantined, settled, sendable)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(one.epoch or epoch, one.name, one.produced, one.delivered),
                *(one.held, one.held, one.settled, read),
            ),
        )
        if not added.rowcount:
            continue  # begun before a crash
        key = int(added.lastrowid or 0)
        connection.executemany(
            "INSERT INTO dropped VALUES (?, ?, ?)",
            [(key, reason, count) for reason, count in one.dropped.items()],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO drops VALUES (?, ?, ?, ?)",
            [(key, drop.first, drop.last, drop.reason) for drop in wreck.drops(one.id)],
        )
        if one.reserved > one.produced:  # volatile records that were in memory alone
            lost = Range(one.produced + 1, one.reserved)
            streams.note_drop(connection, key, lost, volatile.RESTART)
            connection.execute("UPDATE streams SET produced = ? WHERE id = ?", (one.reserved, key))


def _state(connection: sqlite3.Connection, file: str, state: str) -> None:
    connection.execute("UPDATE salvages SET state = ? WHERE name = ?", (state, file))


def _place(connection: sqlite3.Connection, name: tuple[str, str]) -> tuple[int, int | None]:
    """A stream's row, and up to which seq it is read; None: to its end."""
    row = connection.execute(
        "SELECT id, sendable FROM streams WHERE epoch = ? AND name = ?", name
    ).fetchone()
    return (int(row[0]), row[1]) if row else (0, 0)  # no row: in another file


def _keep(connection: sqlite3.Connection, file: str, key: int, piece: Slice) -> None:
    """The records of a slice become held, its holes dropped."""
    rows, size = [], 0
    for one in piece.saved:
        kind, *stamp = one.values
        blob = blobs.insert(connection, one.blob)
        size += len(one.body) + len(one.blob)
        rows.append(streams.row(key, one.seq, kind, Stamp(*stamp), one.body, blob, len(one.blob)))
    streams.insert(connection, rows)
    lost, room = 0, _room(connection, key) - len(rows)
    for hole in piece.holes:
        for span in _not_dropped(connection, key, hole):
            span = Range(span.first, min(span.last, span.first + room - lost - 1))
            if span.last < span.first:  # a table of drops that was damaged too names fewer
                break
            streams.note_drop(connection, key, span, streams.CORRUPTION)
            lost += span.last - span.first + 1
    _balance(connection, key, len(rows), lost)
    connection.execute(
        "UPDATE streams SET bytes = bytes + ?, sendable = ? WHERE id = ?",
        (size, piece.through, key),
    )
    connection.execute(
        "UPDATE salvages SET saved = saved + ?, lost = lost + ? WHERE name = ?",
        (len(rows), lost, file),
    )


def _room(connection: sqlite3.Connection, key: int) -> int:
    """How many seqs of a stream are neither held, in a row, nor dropped."""
    (room,) = connection.execute(
        "SELECT produced - held + quarantined -"
        " (SELECT coalesce(sum(count), 0) FROM dropped WHERE stream = streams.id)"
        " FROM streams WHERE id = ?",
        (key,),
    ).fetchone()
    return int(room)


def _balance(connection: sqlite3.Connection, key: int, saved: int, lost: int) -> None:
    """What was read is no longer to be read; what was lost is not held.

    A hole may cover records that were delivered out of turn: then these count as lost too, and
    delivered is the rest.
    """
    connection.execute(
        "UPDATE streams SET held = held - quarantined + ?1 + max(0, quarantined - ?1 - ?2),"
        " quarantined = max(0, quarantined - ?1 - ?2) WHERE id = ?3",
        (saved, lost, key),
    )
    connection.execute(
        "UPDATE streams SET delivered = produced - held -"
        " (SELECT coalesce(sum(count), 0) FROM dropped WHERE stream = streams.id) WHERE id = ?",
        (key,),
    )


def _finish(connection: sqlite3.Connection, file: str, key: int) -> None:
    """What was held and did not come is lost, nobody knows which seqs; all is the uplink's."""
    (missing,) = connection.execute(
        "SELECT quarantined FROM streams WHERE id = ?", (key,)
    ).fetchone()
    if missing:
        streams.count_drop(connection, key, missing, streams.CORRUPTION)
        _balance(connection, key, 0, missing)
        connection.execute("UPDATE salvages SET lost = lost + ? WHERE name = ?", (missing, file))
    connection.execute("UPDATE streams SET sendable = NULL WHERE id = ?", (key,))


def _not_dropped(connection: sqlite3.Connection, key: int, hole: Range) -> list[Range]:
    """The parts of a hole that are not dropped for another reason already."""
    found, first = [], hole.first
    for begin, end in connection.execute(
        "SELECT first, last FROM drops WHERE stream = ? AND first <= ? AND last >= ?"
        " ORDER BY first",
        (key, hole.last, hole.first),
    ).fetchall():
        if begin > first:
            found.append(Range(first, begin - 1))
        first = max(first, end + 1)
    if first <= hole.last:
        found.append(Range(first, hole.last))
    return found
