"""The ledger against a count of all rows, while the store works on.

Limits  : slices (slices.py); FAULTS_MAX sentences, the rest are counted. One verify at a time.
Format  : reads alone. Temporary tables and triggers of the one connection, none of it in the file,
          keep the notes that follow.
Recovery: a verify that was broken off leaves triggers that count for nobody until the next one, or
          until the file is opened anew. A file opened anew meanwhile ends a verify with an error.

Why the count is exact. The mark is the ledger as it stands in one transaction. The count walks all
keys in ascending order, and what it has passed is a line: keys at or below it were counted. A row
that stood there at the mark is counted when the line passes it, unless it was deleted before: then
its key was above the line, and a trigger adds it to `gone` in the very transaction that deletes it.
A row that came after the mark at a key of the mark's (from a file that is being salvaged, or a
blob's number used again) is counted only if the line passes it, so if it came above the line: then
a trigger takes it off `gone`. Records that are appended have keys above the mark's last, and are no
part of it. So at the end `counted + gone` is what stood there at the mark, to the row. Line, notes
and rows change in one transaction each, and what is rolled back is rolled back together.

The same is done with the pieces of blobs: what the records at the mark refer to against what lay in
`chunks` at the mark, by number and by the sum of the blobs' numbers, so that a piece too many does
not hide one that two records share. All else is checked where it is seen, within one transaction,
and holds at every commit: no dropped range holds a record, no seq is above what was produced, every
record has its blob, every dead letter its record. The ranges of dropped seqs are kept only until
the far side knows them, so a stream's ranges may be fewer than its ledger says, and never more; as
long as nothing is settled, none may be missing.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from msgspec import Struct, field

from agent.errors import StoreError
from agent.records import Balance
from agent.store import count, streams
from agent.store.count import Seen
from agent.store.slices import Over, Slices
from agent.words import counted

T = TypeVar("T")
FAULTS_MAX = 1000


class Checked(Struct):
    """One stream at the mark: what the ledger said, and what was counted.

    `in_ranges` is how many of the dropped seqs still stand in ranges, by reason.
    """

    epoch: str
    name: str
    ledger: Balance
    bytes: int
    held_counted: int = 0
    bytes_counted: int = 0
    in_ranges: dict[str, int] = field(default_factory=dict)


class Report(Struct, frozen=True):
    """What a verify found: `faults` as sentences, and `faults_more` beyond them.

    `epoch` is this file's own; `pieces` of blobs were counted; it ran for `took_s` seconds.
    """

    epoch: str
    balanced: bool
    deep: bool
    streams: list[Checked]
    pieces: int
    faults: list[str]
    faults_more: int
    slices: int
    took_s: float


class Verify:
    """One run; `counted` of about `total` rows are done."""

    def __init__(self, slices: Slices, *, deep: bool = False) -> None:
        """`deep`: the content of every blob is read and checked too."""
        self.deep = deep
        self.counted = 0
        self.total = 0
        self._slices = slices
        self._number = 0  # of slices
        self._marked: dict[int, Checked] = {}
        self._aside: dict[int, int] = {}  # held records that lie in a damaged file (salvage.py)
        self._others: list[tuple[int, int]] = []  # pieces without a record: of drafts, of jobs
        self._faults: list[str] = []
        self._faults_more = 0

    async def run(self) -> Report:
        """Count, and compare. Raises StoreError."""
        began = time.monotonic()
        async with self._slices.verifying:
            try:
                pieces = await self._count()
            finally:
                with suppress(StoreError):  # what broke it off is what is told
                    await self._slices.read(lambda connection, _: count.forget(connection))
        return Report(
            epoch=self._slices.epoch,
            balanced=not self._faults,
            deep=self.deep,
            streams=sorted(self._marked.values(), key=self._order),
            pieces=pieces,
            faults=self._faults,
            faults_more=self._faults_more,
            slices=self._number,
            took_s=round(time.monotonic() - began, 3),
        )

    async def _count(self) -> int:
        """All there is to count; the pieces of blobs at the mark."""
        await self._read(self._begin)
        named = Seen(None)  # the pieces that records name
        for key, one in self._marked.items():
            top = streams.key(key, one.ledger.produced)
            walk = partial(count.records, stream=key, top=top, who=self._who(key))
            seen = await self._walk(walk, streams.key(key, 0) - 1)
            one.held_counted, one.bytes_counted = seen.rows, seen.bytes
            named.add(seen)
        await self._walk(count.strangers, -1)
        self.total += named.pieces
        lying = await self._walk(partial(count.chunks, deep=self.deep), -1)
        if lying.damaged:
            await self._name(lying.damaged)
        await self._drops()
        await self._walk(count.dead, (0, 0))
        await self._read(partial(self._compare, named=named, lying=lying))
        return lying.pieces

    async def _read(self, operation: Callable[[sqlite3.Connection, Over], T]) -> T:
        self._number += 1
        return await self._slices.read(operation)

    async def _walk(
        self, operation: Callable[[sqlite3.Connection, Over, count.At], Seen], at: count.At
    ) -> Seen:
        """One walk to its end, slice by slice; all that was seen."""
        whole = Seen(at)
        while not whole.ended:
            part = await self._read(lambda c, over: operation(c, over, whole.at))
            self.counted += part.rows
            self._fault(*part.faults)
            whole.add(part)
        return whole

    def _fault(self, *sentences: str) -> None:
        room = FAULTS_MAX - len(self._faults)
        self._faults += sentences[:room]
        self._faults_more += len(sentences[room:])

    def _order(self, one: Checked) -> tuple[bool, str, str]:
        """This file's own epoch first."""
        return one.epoch != self._slices.epoch, one.epoch, one.name

    def _who(self, key: int) -> str:
        one = self._marked[key]
        return one.name if one.epoch == self._slices.epoch else f"{one.name} of epoch {one.epoch}"

    def _begin(self, connection: sqlite3.Connection, _: Over) -> None:
        count.begin(connection)
        own = self._slices.epoch
        self._marked = {
            key: Checked(
                *(epoch or own, name),
                Balance(produced, delivered, held, count.dropped(connection, key)),
                size,
            )
            for key, epoch, name, produced, delivered, held, size in connection.execute(
                "SELECT id, epoch, name, produced, delivered, held, bytes FROM streams ORDER BY id"
            ).fetchall()
        }
        self._aside = dict(connection.execute("SELECT id, quarantined FROM streams").fetchall())
        self._others = connection.execute(
            "SELECT next - 1, (next - 1) * blob FROM drafts UNION ALL"
            " SELECT coalesce(sum(pieces), 0), coalesce(sum(pieces * blob), 0) FROM job_chunks"
        ).fetchall()
        self.total = sum(one.ledger.held for one in self._marked.values())

    async def _name(self, damaged: dict[int, int]) -> None:
        """Whose the damaged pieces are: a piece's key, and its blob."""
        owners = await self._walk(partial(count.owners, damaged=damaged, who=self._who), -1)
        for number, blob in damaged.items():
            if said := await self._read(partial(count.job_of, piece=number, blob=blob)):
                owners.damaged[number] = blob
                self._fault(said)
        left = len(damaged.keys() - owners.damaged.keys())
        if left:
            what = counted(left, "piece of a blob was", "pieces of blobs were")
            self._fault(f"{what} damaged; the records are gone by now")

    async def _drops(self) -> None:
        """The dropped ranges, and how many seqs they name, by stream and reason."""
        seen = await self._walk(count.drops, (0, 0, 0))
        for (key, reason), named in seen.dropped.items():
            if key in self._marked:
                self._marked[key].in_ranges[reason] = named

    def _compare(self, connection: sqlite3.Connection, _: Over, named: Seen, lying: Seen) -> None:
        """At the end: what was counted and what had gone before, against the mark."""
        gone, lying_gone = count.gone(connection)
        for key, one in self._marked.items():
            named.add(gone[key])
            one.held_counted += gone[key].rows + self._aside[key]
            one.bytes_counted += gone[key].bytes
            (settled,) = connection.execute(
                "SELECT settled FROM streams WHERE id = ?", (key,)
            ).fetchone()
            now = count.dropped(connection, key)
            told = one.epoch == self._slices.epoch  # of a damaged file not every range is known
            said = _faults(one, now, settled if told else None)
            self._fault(*(f"{self._who(key)}: {sentence}" for sentence in said))
        for pieces, sum_of_blobs in self._others:
            named.pieces += pieces
            named.blobs += sum_of_blobs
        lying.add(lying_gone)
        more = lying.pieces - named.pieces
        if more > 0:
            self._fault(f"{more} of {lying.pieces} pieces of blobs belong to no record")
        elif more < 0:
            self._fault(f"records share {-more} of {lying.pieces} pieces of blobs")
        elif lying.blobs != named.blobs:
            self._fault("records share pieces of blobs, and others belong to none")


def _faults(one: Checked, dropped_now: dict[str, int], settled: int | None) -> list[str]:
    """What of a stream does not add up."""
    ledger = one.ledger
    found = []
    if not ledger.balanced:
        dropped = ", ".join(f"{n} {reason}" for reason, n in ledger.dropped.items()) or "0"
        found.append(
            f"the ledger does not balance: {ledger.produced} produced, but {ledger.delivered} "
            f"delivered, {ledger.held} held, {dropped} dropped"
        )
    if one.held_counted != ledger.held:
        there = counted(one.held_counted, "record is", "records are")
        found.append(f"the ledger says {ledger.held} held, {there} there")
    if one.bytes_counted != one.bytes:
        found.append(f"the ledger says {one.bytes} bytes held, {one.bytes_counted} are there")
    for reason, named in one.in_ranges.items():
        if named > dropped_now.get(reason, 0):
            found.append(
                f"dropped ranges name {counted(named, 'seq')} as {reason}, the ledger says "
                f"{dropped_now.get(reason, 0)}"
            )
    for reason, number in ledger.dropped.items():
        if settled == 0 and one.in_ranges.get(reason, 0) < number:
            found.append(
                f"the ledger says {number} dropped as {reason}, ranges name "
                f"{one.in_ranges.get(reason, 0)}, and the far side knows of none yet"
            )
    return found
