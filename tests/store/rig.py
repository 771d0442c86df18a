"""A real store in a test's hands: opened, asked, cut off at a point, opened again.

A crash is a copy of the store's files, made in the store's own thread at the very point: what a
kill -9 there leaves behind. The store that was copied goes on unheard, and is thrown away.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from agent import config
from agent.config import StreamRule
from agent.errors import HoldfastError
from agent.records import Balance, Drop, Position, Stamp, raw_stream
from agent.store import blobs, bounds, reserve, space
from agent.store.arrivals import Limits
from agent.store.outbox import Batch, Outbox
from agent.store.store import Store
from tests.outside import DEADLINE_S
from tests.store.faults import tripwire
from tests.store.model import GIVE_UP_MAX, SOURCE, Kept
from tests.store.test_bounds import Hands

PIECE_BYTES = 50_000  # not a divisor of a chunk
MEMORY = Path("/dev/shm")  # a process dies here, not the power: what was written is there

Call = Coroutine[Any, Any, Any]


class Seen(msgspec.Struct, frozen=True):
    """All that the store shows at one moment."""

    ledger: dict[str, Balance]
    faults: list[str]
    held: dict[str, dict[int, Kept]]
    told: dict[str, list[Drop]]  # as far as batches would tell them now
    dead: dict[int, str]
    waiting: dict[str, tuple[int, int]]  # records and bytes
    buried: dict[str, tuple[int, int]]  # how many, and the last
    position: Position
    used_bytes: int


class Answer(msgspec.Struct, frozen=True):
    """What became of a call: its result or its error, and whether the caller lived to see it."""

    result: Any
    error: HoldfastError | None
    heard: bool


def _unsent(connection: sqlite3.Connection) -> list[tuple[str, int, Kept]]:
    """The link's dead letters, which are not leased."""
    rows = connection.execute(
        "SELECT name, dead.seq, boot, mono_ns, wall_us, body, blob, blob_bytes FROM dead"
        " JOIN records ON records.id = dead.stream << 40 | dead.seq"
        " JOIN streams ON streams.id = dead.stream WHERE unsent AND NOT retry"
    )
    return [
        (
            name,
            seq,
            Kept(Stamp(*made), body, blobs.read(connection, blob, 0, size) if size else b""),
        )
        for name, seq, *made, body, blob, size in rows.fetchall()
    ]


class Rig:
    """One folder, one clock, and one open store after the other."""

    def __init__(self, settings: config.Store, jobs: Limits | None = None) -> None:
        self.clock = Hands()
        self.store: Store
        self._settings = settings
        self._jobs = jobs
        self._folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self._path = self._folder / "0" / "s.db"
        self._lives = 0
        self._fuse = ("", 0)  # a point, and how often it is met before the crash
        self._crashed = False
        self._blobs: dict[tuple[str, int], bytes] = {}  # read since the file was opened
        self._loop = asyncio.new_event_loop()
        self._bent = contextlib.ExitStack()
        for place, name, value in (
            (sqlite3, "connect", tripwire.connector(self._met)),
            (reserve, "RETRY_S", 0.0),  # the one wait on the real clock
            (reserve, "RESERVE_BYTES", 65_536),
            (space, "RESERVE_BYTES", 65_536),
            (bounds, "GIVE_UP_MAX", GIVE_UP_MAX),
        ):
            self._bent.enter_context(mock.patch.object(place, name, value))

    def open(self) -> None:
        """Open what is in the folder."""
        settings = msgspec.structs.replace(self._settings, path=str(self._path))
        self._blobs.clear()
        self.store = Store(settings, self.clock, self._jobs)
        self._loop.run_until_complete(self.store.__aenter__())

    def close(self) -> None:
        """As an agent that is asked to end."""
        self._loop.run_until_complete(self.store.__aexit__())

    def end(self) -> None:
        """Leave nothing behind."""
        try:
            self.close()
        finally:
            self._bent.close()
            self._loop.close()
            shutil.rmtree(self._folder)

    def ask(self, *calls: Call) -> list[Answer]:
        """Make one call, or several that reach the store together."""
        return self._loop.run_until_complete(self._together(calls))

    def crash(self) -> None:
        """The process dies between two commits; the store is open again on what it left."""
        if not self._crashed:
            self._loop.run_until_complete(self.store._database.read(lambda _: self._copy()))
        left = self._folder / str(self._lives) / "s.db"
        self.close()
        shutil.rmtree(self._path.parent)
        self._path, self._crashed, self._fuse = left, False, ("", 0)
        self.open()

    def crash_in(self, point: str, times: int, *calls: Call) -> list[Answer]:
        """The process dies when it meets `point` for this time in these calls, or after them."""
        self._fuse = (point, times)
        answers = self.ask(*calls)
        self.ask(self.store.used_bytes())  # what tidying meets counts too
        self.crash()
        return answers

    def allow_pages(self, more: int | None) -> None:
        """The file may grow by so many pages (None: as it likes), then SQLite finds no room."""

        def operation(connection: sqlite3.Connection) -> None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            limit = 1 << 30 if more is None else pages + more
            connection.execute(f"PRAGMA max_page_count = {limit}").fetchone()

        self._loop.run_until_complete(self.store._database.read(operation))

    def look(self) -> Seen:
        """See everything, without touching what is leased."""
        return self._loop.run_until_complete(self._look())

    async def _look(self) -> Seen:
        store, before = self.store, None
        held: dict[str, dict[int, Kept]] = {}
        told: dict[str, list[Drop]] = {}
        while True:  # what is above the bounds may still be given up between our reads
            ledger, used_bytes = await store.ledger.balances(), await store.used_bytes()
            if (ledger, used_bytes) == before:
                faults, dead = await store.ledger.faults(), dict(await store.spool.dead(SOURCE))
                outbox = store.outbox
                waiting = {w.name[1]: (w.records, w.bytes) for w in await outbox.waiting()}
                buried = {b.name[1]: (b.records, b.last) for b in await outbox.buried()}
                position = await store.spool.position(SOURCE)
                return Seen(
                    *(ledger, faults, held, told, dead, waiting, buried, position, used_bytes)
                )
            before = (ledger, used_bytes)
            held.clear()
            told.clear()
            probe = Outbox(
                store._database, store.bindings, self.clock, lambda _: StreamRule(match="*")
            )  # its leases are not the uplink's
            while batch := await probe.lease(10**6, 10**9):
                told.setdefault(batch.stream, []).extend(batch.drops)
                held.setdefault(batch.stream, {}).update(await self._records(batch))
            for name, seq, kept in await store._database.read(_unsent):
                held.setdefault(name, {})[seq] = kept
            held[raw_stream(SOURCE)] = {
                seq: Kept(stamp, msgspec.json.encode(raw), pcm)
                for seq, raw, stamp, pcm in await store.spool.waiting(SOURCE, 1, 10**6)
            }

    async def _records(self, batch: Batch) -> dict[int, Kept]:
        found = {}
        for one in batch.records:
            key = (one.stream, one.seq)
            if key not in self._blobs:
                pieces = [
                    await self.store.outbox.blob(one, start, PIECE_BYTES)
                    for start in range(0, one.blob_bytes, PIECE_BYTES)
                ]
                self._blobs[key] = b"".join(pieces)
            found[one.seq] = Kept(one.stamp, one.body, self._blobs[key])
        return found

    async def _together(self, calls: tuple[Call, ...]) -> list[Answer]:
        """The store's thread stands still until all calls wait for it: one group, at every run."""
        go, stands = threading.Event(), asyncio.Event()

        def stand(_: sqlite3.Connection) -> None:
            self._loop.call_soon_threadsafe(stands.set)
            assert go.wait(DEADLINE_S)

        standing = asyncio.ensure_future(self.store._database.read(stand))
        await stands.wait()
        asked = [asyncio.ensure_future(self._answer(call)) for call in calls]
        await asyncio.sleep(0)
        go.set()
        await standing
        return await asyncio.gather(*asked)

    async def _answer(self, call: Call) -> Answer:
        result, error = None, None
        try:
            result = await call
        except HoldfastError as failure:
            error = failure
        return Answer(result, error, heard=not self._crashed)

    def _met(self, here: str) -> None:
        point, left = self._fuse
        if here == point:
            self._fuse = (point, left - 1)
            if left == 1:
                self._copy()

    def _copy(self) -> None:
        self._crashed = True  # first: what is answered from here on was not heard
        self._lives += 1
        left = self._folder / str(self._lives)
        left.mkdir()
        for suffix in ("", "-wal", ".reserve", ".head"):
            source = self._path.with_name(f"s.db{suffix}")
            if source.exists():
                shutil.copyfile(source, left / source.name)
