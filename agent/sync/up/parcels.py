"""What is sent as one: some records of a lease with their blobs, and the dropped ranges among them.

A lease may be cut into several, each acknowledged, missed and tried again for itself.
"""

import logging
from collections.abc import Iterable
from functools import cached_property

from msgspec import Struct, structs

from agent.records import Drop, Range, Record, digest
from agent.store.outbox import Batch, Name

log = logging.getLogger("link")
RECORD_BYTES = 512  # what a record takes beside its body, before compression; generously
BLOB_BYTES_MAX = 256 * 1024  # a parcel with more than this is no longer than it must be
RATIO_MIN = 1 / 50


class Parcel(Struct, frozen=True, eq=False, dict=True):
    """It speaks of every seq in `span`, as a lease does. `alone`: it is sent as a suspect.

    `before` is the digest of the record right before the first, if that is held.
    """

    name: Name
    records: list[Record]
    drops: list[Drop]
    span: Range
    live: bool
    alone: bool = False
    before: int | None = None

    @cached_property
    def body_bytes(self) -> int:
        """Of all bodies."""
        return sum([len(record.body) for record in self.records])

    @cached_property
    def blob_bytes(self) -> int:
        """Of all blobs."""
        return sum([record.blob_bytes for record in self.records])

    @property
    def size_bytes(self) -> int:
        """Of bodies and blobs."""
        return self.body_bytes + self.blob_bytes

    @property
    def plain_bytes(self) -> int:
        """Of the batch, before compression."""
        return self.body_bytes + RECORD_BYTES * len(self.records)


class Ratio:
    """How much smaller batches become, as measured on those that were sent."""

    def __init__(self) -> None:
        self.value = 1 / 4

    def plain_bytes(self, payload_bytes: int) -> int:
        """How many bytes of records make such a payload."""
        return int(payload_bytes / self.value)

    def note(self, parcel: Parcel, payload_bytes: int) -> None:
        """So many it were."""
        if parcel.records:
            sample = max(RATIO_MIN, payload_bytes / parcel.plain_bytes)
            self.value += (sample - self.value) / 8


def cut(leased: Batch, *, alone: bool = False) -> list[Parcel]:
    """A lease as parcels, each with no more than BLOB_BYTES_MAX of blobs if it can be helped."""
    of = leased.records, leased.drops, leased.span, leased.live
    whole = Parcel(leased.name, *of, alone, leased.before)
    if whole.blob_bytes <= BLOB_BYTES_MAX:
        return [whole]
    ends, blob_bytes = [], 0
    for number, record in enumerate(leased.records):
        if blob_bytes and blob_bytes + record.blob_bytes > BLOB_BYTES_MAX:
            ends.append(number)
            blob_bytes = 0
        blob_bytes += record.blob_bytes
    return _parts(whole, ends)


def halves(parcel: Parcel) -> list[Parcel]:
    """Two smaller ones; none, if there is nothing to divide."""
    if len(parcel.records) > 1:
        return _parts(parcel, [len(parcel.records) // 2])
    if parcel.records and parcel.drops:  # the ranges before it, and the record
        return _at(parcel, parcel.records, [parcel.records[0].seq - 1])
    if len(parcel.drops) > 1:
        return _at(parcel, [], [parcel.drops[len(parcel.drops) // 2].first - 1])
    return []


def _parts(parcel: Parcel, ends: Iterable[int]) -> list[Parcel]:
    """Cut behind the record before each of these."""
    return _at(parcel, parcel.records, [parcel.records[end - 1].seq for end in ends])


def _at(parcel: Parcel, records: list[Record], lasts: list[int]) -> list[Parcel]:
    """The parts up to each of these seqs, and the rest."""
    parts: list[Parcel] = []
    first = parcel.span.first
    for last in [*lasts, parcel.span.last]:
        of = [record for record in records if first <= record.seq <= last]
        told = [drop for drop in parcel.drops if first <= drop.first <= last]
        if of or told or last == parcel.span.last:  # else all of it was delivered before
            before = _before(parcel, of[0]) if of else None
            span = Range(first, last)
            parts.append(structs.replace(parcel, records=of, drops=told, span=span, before=before))
            first = last + 1
    return parts


def _before(parcel: Parcel, record: Record) -> int | None:
    """The digest of the record right before one of the parcel's."""
    at = parcel.records.index(record)
    if at == 0:
        return parcel.before
    above = parcel.records[at - 1]
    return digest(above.body) if above.seq == record.seq - 1 else None


def tell_sent(parcel: Parcel, payload_bytes: int) -> None:
    """Say in the log what was handed over."""
    log.info(
        "%s #%d-%d: sent, %.1f KiB of records, %.0f KiB of audio",
        *(parcel.name[1], parcel.span.first, parcel.span.last),
        *(payload_bytes / 1024, parcel.blob_bytes / 1024),
    )
