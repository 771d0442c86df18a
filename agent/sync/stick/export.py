"""An export: what a store holds, copied into bundles, one for each file.

It leases nothing and purges nothing. What it holds is fixed when it begins, so that it comes to an
end while producers go on. Where each part begins is kept in memory: a part can be asked for again,
and ends no later than `part_bytes`, but for one that holds a single record.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from msgspec import Struct

from agent.errors import NotNow, NotThere
from agent.protocol import batch, blob, bundle, signing
from agent.records import Range, Record
from agent.shown import ExportState
from agent.store.choice import DROP_BYTES, EVENT_BYTES
from agent.store.held import Extent, Held, Stretch
from agent.store.leases import Name

RECORDS_MAX = 500  # in one batch
BATCH_BYTES_MAX = 1 << 20  # of a batch with its blobs, but for one that has a single record
PIECE_BYTES = 256 * 1024
ROOM_BYTES = 1024  # what a frame adds to its content, generously
FOOTER_BYTES = 4096


class Place(Struct, frozen=True):
    """How far an export is: extent `index`, whose seqs up to `after` are done; and what was."""

    index: int = 0
    after: int = 0
    records: int = 0
    size_bytes: int = 0


class Export:
    """One export: what was held when it began, told part by part."""

    def __init__(
        self,
        held: Held,
        extents: list[Extent],
        part_bytes: int,
        device: str,
        key: signing.Key,
        created_s: float,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.failure: str | None = None  # why the last part that was asked for ended early
        self._held = held
        self._extents = extents
        self._part_bytes = part_bytes
        self._device = device
        self._key = key
        self._created = datetime.fromtimestamp(created_s, UTC).isoformat(timespec="seconds")
        self._starts = [(Place(), "")]  # of each part that may be asked for, and what it follows
        self._kept = 0  # parts up to this one are safe where they were taken to
        self._done = not extents
        self._made: bundle.Sealed | None = None
        self._now = Place()  # as the part that is being made has it
        self._asked = 0  # how often a part was asked for

    def state(self) -> ExportState:
        """What there is in all, how far it is, the last part that was made, and which is next."""
        made = self._made  # the last part, if it was not broken off
        return {
            "export": self.id,
            "device": self._device,
            "part_bytes": self._part_bytes,
            "records": sum(one.records for one in self._extents),
            "size_bytes": sum(one.size_bytes for one in self._extents),
            "streams": len(self._extents),
            "records_done": self._now.records,
            "size_bytes_done": self._now.size_bytes,
            "failure": self.failure,
            "part": made.header.part if made else None,
            "part_digest": made.digest if made else None,
            "part_next": None if self._done else self._kept + 1,
        }

    async def part(self, number: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a part; one that was asked for before is made again.

        Raises NotThere for a part that does not come next, NotNow when another was asked for
        meanwhile, and StoreError.
        """
        if not 1 <= number <= min(self._kept + 1, len(self._starts)) or not self._extents:
            raise NotThere(
                f"export {self.id} has no part {number} now",
                f"ask for parts in their order: {self._kept + 1} is next",
            )
        self._asked += 1
        asked, (place, follows) = self._asked, self._starts[number - 1]
        self.failure, self._made, self._now = None, None, place
        part = _Part(self._header(number, follows), self._key, self._held)
        yield part.begin()
        more = False
        while not more and place.index < len(self._extents):
            room = self._part_bytes - part.size_bytes
            stretch = await self._next(place, room)
            if stretch is None:
                place = Place(place.index + 1, 0, place.records, place.size_bytes)
                continue
            more = part.frames > 0 and _bytes_most(stretch) > room
            if more:
                break
            async for made in part.add(stretch):
                if asked != self._asked:
                    raise NotNow(f"export {self.id}: another asked for a part of it meanwhile")
                yield made
            self._now = place = _beyond(place, stretch)
        sealed, end = part.end(more=more)
        yield end
        self._made = sealed
        self._starts[number:] = [(place, sealed.digest)] if more else []

    def keep(self, number: int) -> None:
        """The last part that was made is safe where it was taken to: the next one may follow.

        Raises NotNow when that was another, or is not whole.
        """
        made = self._made
        if made is None or made.header.part != number:
            raise NotNow(
                f"export {self.id}: part {number} is not the last that was made",
                "ask for it again",
            )
        self._kept, self._done = number, not made.footer.more

    async def _next(self, place: Place, room: int) -> Stretch | None:
        """The next stretch: one that fits into `room`, or a single record."""
        extent = self._extents[place.index]
        after = max(place.after, extent.after)
        if after >= extent.through:
            return None
        size = BATCH_BYTES_MAX
        while stretch := await self._held.next(extent, after, RECORDS_MAX, size):
            if len(stretch.records) < 2 or _bytes_most(stretch) <= room:
                return stretch
            size //= 2
        return None

    def _header(self, number: int, follows: str) -> bundle.Header:
        return bundle.Header(
            kind="data",
            device=self._device,
            export=self.id,
            part=number,
            by=self._key.public,
            created=self._created,
            epochs=sorted({one.name[0] for one in self._extents}),
            follows=follows,
        )


class _Part:
    """Turns stretches into the frames of one bundle, and counts them."""

    def __init__(self, header: bundle.Header, key: signing.Key, held: Held) -> None:
        self._header = header
        self._writer = bundle.Writer(header, key)
        self._held = held
        self._covers: dict[str, dict[str, Range]] = {}
        self._records = 0
        self._blob_bytes = 0

    @property
    def frames(self) -> int:
        """How many there are."""
        return self._writer.frames

    @property
    def size_bytes(self) -> int:
        """How large it is."""
        return self._writer.size_bytes

    def begin(self) -> bytes:
        """Its first bytes."""
        return self._writer.begin()

    async def add(self, stretch: Stretch) -> AsyncGenerator[bytes, None]:
        """A stretch: its blobs, then its batch, as the link sends them."""
        records = []
        for record in stretch.records:
            start = 0
            while start < record.blob_bytes:
                data = await self._held.blob(record, start, PIECE_BYTES)
                if not data:
                    break
                yield self._piece(stretch.name, record, start, data)
                start += len(data)
            if start == record.blob_bytes:  # else it left meanwhile, and is told by who took it
                records.append(record)
        self._cover(stretch, len(records))
        if records or stretch.drops:
            of = (self._header.device, *stretch.name, records, stretch.drops)
            before = stretch.before if records[:1] == stretch.records[:1] else None
            payload = await asyncio.to_thread(batch.encode, *of, before=before)
            yield self._writer.frame(bundle.BATCH, payload)

    def _piece(self, name: Name, record: Record, start: int, data: bytes) -> bytes:
        of = (self._header.device, *name, record.seq, start, record.blob_bytes)
        self._blob_bytes += len(data)
        return self._writer.frame(bundle.PIECE, blob.encode(*of, data))

    def _cover(self, stretch: Stretch, count: int) -> None:
        epoch, stream = stretch.name
        streams = self._covers.setdefault(epoch, {})
        first = streams[stream].first if stream in streams else stretch.span.first
        streams[stream] = Range(first, stretch.span.last)
        self._records += count

    def end(self, *, more: bool) -> tuple[bundle.Sealed, bytes]:
        """What it is, and its last bytes."""
        footer = bundle.Footer(
            frames=self._writer.frames,
            records=self._records,
            blob_bytes=self._blob_bytes,
            covers=self._covers,
            more=more,
        )
        end = self._writer.end(footer)
        writer = self._writer
        return bundle.Sealed(self._header, footer, writer.digest, writer.size_bytes), end


def _bytes_most(stretch: Stretch) -> int:
    """How much a stretch adds to a bundle, at most."""
    pieces = sum(-(-record.blob_bytes // PIECE_BYTES) for record in stretch.records)
    told = EVENT_BYTES * len(stretch.records) + DROP_BYTES * len(stretch.drops)
    return _bytes(stretch) + told + ROOM_BYTES * (pieces + 1) + FOOTER_BYTES


def _bytes(stretch: Stretch) -> int:
    return sum(len(record.body) + record.blob_bytes for record in stretch.records)


def _beyond(place: Place, stretch: Stretch) -> Place:
    return Place(
        place.index,
        stretch.span.last,
        place.records + len(stretch.records),
        place.size_bytes + _bytes(stretch),
    )
