"""What was promised against what is there, after the crash.

`Promises` learns the producer's lines, over as many lives of it as there were on one store;
`Promises.faults` opens the store again and says what is wrong, one sentence each.
"""

import asyncio
import hashlib
import sqlite3
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.config import Store as Settings
from agent.records import Raw, Segment
from agent.store.store import Store
from tests.store.faults.producer import EVICTED, STREAMS, VOLATILE, Body, digest, sound

Held = dict[str, dict[int, tuple[bytes, bytes]]]  # by stream and seq: body and blob


class Promises:
    """All that the producer was told is done."""

    def __init__(self) -> None:
        self.epoch = ""
        self.appended: dict[str, dict[int, str]] = defaultdict(dict)  # digests
        self.marks: Counter[str] = Counter()  # settled, by stream
        self.refused: Counter[str] = Counter()
        self.acking: dict[str, set[int]] = defaultdict(set)  # may be delivered
        self.acked: dict[str, set[int]] = defaultdict(set)  # is delivered, or was dropped
        self.releasing: Counter[str] = Counter()  # raw audio before this may be dropped
        self.released: Counter[str] = Counter()
        self.volatile: dict[str, set[int]] = defaultdict(set)  # may be given up, and counted
        self.unsafe: dict[str, set[int]] = defaultdict(set)  # and lost in a restart
        self.faulted = False
        self.wrong: list[str] = []

    def learn(self, lines: Iterable[str]) -> None:
        """Take in what one life of the producer said."""
        unsafe: dict[str, set[int]] = defaultdict(set)  # of this life, and not safe by now
        for line in lines:
            match line.split():
                case ["epoch", epoch]:
                    if self.epoch not in ("", epoch):
                        self.wrong.append("the store has another epoch")
                    self.epoch = epoch
                case ["appended", stream, first, *digests]:
                    self._append(stream, int(first), digests)
                    unsafe[stream] = {seq for seq in unsafe[stream] if seq > int(first)}
                case ["taken", stream, first, *digests]:
                    self._append(stream, int(first), digests)
                    seqs = set(range(int(first), int(first) + len(digests)))
                    self.volatile[stream] |= seqs
                    unsafe[stream] |= seqs
                case ["acking", stream, first, last]:
                    self.acking[stream] |= set(range(int(first), int(last) + 1))
                case ["acked", stream, first, last, mark]:
                    self.acked[stream] |= set(range(int(first), int(last) + 1))
                    self.marks[stream] = max(self.marks[stream], int(mark))
                case ["releasing", stream, seq]:
                    self.releasing[stream] = max(self.releasing[stream], int(seq))
                case ["released", stream, seq]:
                    self.released[stream] = max(self.released[stream], int(seq))
                case ["refused", stream]:
                    self.refused[stream] += 1
                case ["failed", *_]:
                    self.faulted = True
                case ["log", *_]:
                    pass
                case _:
                    self.wrong.append(f"the producer said: {line}")
        for stream, seqs in unsafe.items():
            self.unsafe[stream] |= seqs

    def _append(self, stream: str, first: int, digests: list[str]) -> None:
        for seq, one in enumerate(digests, first):
            if seq in self.appended[stream]:
                self.wrong.append(f"twice: {stream} {seq} was given out two times")
            self.appended[stream][seq] = one

    def faults(self, folder: Path) -> list[str]:
        """Open the store in this folder, and compare."""
        return self.wrong + asyncio.run(self._faults(folder / "s.db"))

    async def _faults(self, path: Path) -> list[str]:
        async with Store(Settings(path=str(path)), Clock()) as store:
            found = await store.ledger.faults()
            if self.epoch not in ("", store.epoch):
                found.append("the store has another epoch")
            with sqlite3.connect(path) as db:
                found += _sound(db)
                held = _held(db)
                counted = _streams(db)
                counts = db.execute(
                    "SELECT name, sum(count) FROM dropped JOIN streams ON id = stream GROUP BY name"
                ).fetchall()
                drops = db.execute(
                    "SELECT name, first, last, reason FROM drops JOIN streams ON id = stream"
                ).fetchall()
            db.close()
        found += self._missing(held, drops, set(counted))
        found += self._torn(held)
        found += _twice(held, self.appended)
        for stream, (produced, delivered, settled) in counted.items():
            gone = [(f, last, why) for name, f, last, why in drops if name == stream]
            told = dict(counts).get(stream, 0) - sum(last - first + 1 for first, last, _ in gone)
            left = delivered + told  # the ranges that the cloud knows of have no row any more
            found += self._gaps(stream, produced, left, set(held.get(stream, ())), gone)
            if settled < self.marks[stream]:
                found.append(f"{stream}: settled {settled}, was told {self.marks[stream]}")
        return found

    def _missing(self, held: Held, drops: list[tuple], counted: set[str]) -> list[str]:
        """Records that were accepted and are neither held, nor acknowledged, nor released."""
        found = []
        for stream, promised in self.appended.items():
            there = held.get(stream, {})
            for seq, one in promised.items():
                if seq in there:
                    # After a fault what was refused may come back, at a seq that a volatile
                    # record was then told; that one was in memory alone.
                    lost = self.faulted and seq in self.unsafe[stream]
                    if digest(*there[seq]) != one and not lost:
                        found.append(f"missing: {stream} {seq} is another record")
                elif self._may_be_dropped(stream, seq, drops):
                    pass
                elif seq not in self.acking[stream] and seq >= self.releasing[stream]:
                    found.append(f"missing: {stream} {seq} was accepted")
        for stream, count in self.refused.items():
            kept = sum(e - f + 1 for n, f, e, why in drops if n == stream and why == "full")
            if kept < count:
                found.append(f"missing: {stream} has {kept} of {count} refusals")
        return found

    def _may_be_dropped(self, stream: str, seq: int, drops: list[tuple]) -> bool:
        """Whether this record could give way, or was volatile; and is counted for that reason."""
        reasons = [why for name, f, e, why in drops if name == stream and f <= seq <= e]
        if reasons == ["evicted"]:
            return stream == EVICTED
        if reasons == ["restart"]:
            return seq in self.unsafe[stream]
        return reasons in (["full"], ["error"]) and seq in self.volatile[stream]

    def _torn(self, held: Held) -> list[str]:
        """Calls of which a part is there, and the rest was not acknowledged."""
        found = []
        for stream in set(held) & {*STREAMS, VOLATILE} - {EVICTED}:
            for seq, (body, _) in held[stream].items():
                call = msgspec.json.decode(body, type=Body)
                whole = set(range(seq - call.place, seq - call.place + call.of))
                if whole - held[stream].keys() - self.acking[stream]:
                    found.append(f"{stream} {seq}: the rest of its call {call.call} is missing")
        return found

    def _gaps(
        self, stream: str, produced: int, delivered: int, held: set[int], drops: list[tuple]
    ) -> list[str]:
        """Every seq is held, dropped or delivered, one of them; nothing acked is back.

        `delivered` counts what was dropped with the cloud's knowledge, too.
        """
        found = []
        dropped = [seq for first, last, _ in drops for seq in range(first, last + 1)]
        gone = set(range(1, produced + 1)) - held - set(dropped)
        if len(gone) != delivered:
            found.append(f"{stream}: {delivered} delivered, {len(gone)} are gone")
        if len(set(dropped)) != len(dropped) or held & set(dropped):
            found.append(f"twice: {stream} has seqs in two places")
        if max([0, *held, *dropped]) > produced:
            found.append(f"{stream}: seqs beyond {produced}")
        if gone - self.acking[stream]:
            found.append(f"missing: {stream} {sorted(gone - self.acking[stream])[:5]} never acked")
        if back := held & self.acked[stream]:
            found.append(f"twice: {stream} {sorted(back)[:5]} acked and here again")
        if early := {s for s in held if s < self.released[stream]}:
            found.append(f"twice: {stream} {sorted(early)[:5]} released and here again")
        processed = [last for _, last, why in drops if why == "processed"]
        if processed and max(processed) >= self.releasing[stream]:
            found.append(f"missing: {stream} up to {max(processed)} never released")
        return found


def _sound(db: sqlite3.Connection) -> list[str]:
    """What SQLite itself can say, and rows that belong to nobody."""
    asked = {
        "PRAGMA integrity_check": [("ok",)],
        "PRAGMA foreign_key_check": [],
        "PRAGMA auto_vacuum": [(2,)],
        "SELECT * FROM drafts": [],  # opening the store removed what the crash had left
        "SELECT id >> 12 FROM chunks EXCEPT SELECT blob FROM records": [],
        "SELECT stream, seq FROM dead EXCEPT SELECT stream, seq FROM records": [],
    }
    answers = {sql: db.execute(sql).fetchall() for sql in asked}
    return [f"{sql}: {answers[sql][:3]}" for sql in asked if answers[sql] != asked[sql]]


def _held(db: sqlite3.Connection) -> Held:
    blobs: dict[tuple[str, int], bytes] = defaultdict(bytes)
    for stream, seq, number, crc, data in db.execute(
        "SELECT name, seq, chunks.id & 4095, chunks.crc, data FROM chunks"
        " JOIN records ON blob = chunks.id >> 12 JOIN streams ON streams.id = stream"
        " ORDER BY chunks.id"
    ):
        assert number * 65_536 == len(blobs[stream, seq])
        assert zlib.crc32(data) == crc
        blobs[stream, seq] += data
    held: Held = defaultdict(dict)
    for stream, seq, body, size in db.execute(
        "SELECT name, seq, body, blob_bytes FROM records JOIN streams ON streams.id = stream"
    ):
        assert size == len(blobs[stream, seq])
        held[stream][seq] = (body, blobs[stream, seq])
    return held


def _streams(db: sqlite3.Connection) -> dict[str, tuple[int, int, int]]:
    rows = db.execute("SELECT name, produced, delivered, settled FROM streams")
    return {name: (produced, delivered, settled) for name, produced, delivered, settled in rows}


def _twice(held: Held, appended: dict[str, dict[int, str]]) -> list[str]:
    """One record under two seqs, or a blob that is not its own."""
    found: list[str] = []
    where: dict[str, tuple[str, int]] = {}
    for stream, promised in appended.items():
        where.update({one: (stream, seq) for seq, one in promised.items()})
    for stream, rows in held.items():
        for seq, (body, blob) in rows.items():
            here = (stream, seq)
            if where.setdefault(digest(body, blob), here) != here:
                found.append(f"twice: {here} is also {where[digest(body, blob)]}")
            if not _whole(stream, body, blob):
                found.append(f"{here}: the blob is not the body's")
    return found


def _whole(stream: str, body: bytes, blob: bytes) -> bool:
    if stream.endswith(".raw"):
        raw = msgspec.json.decode(body, type=Raw)
        return blob == sound(raw.name, raw.offset, raw.samples)
    if stream.endswith(".segments"):
        return msgspec.json.decode(body, type=Segment).sha256 == hashlib.sha256(blob).hexdigest()
    return msgspec.json.decode(body, type=Body).blob == digest(b"", blob)
