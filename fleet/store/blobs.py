"""The blobs of one transaction: pieces in any order, repeated, cut elsewhere than before.

Limits  : UNSETTLED_MAX blobs of a stream may be without all their bytes or without their record;
          of one, ISLANDS_MAX ranges may lie apart from its start. A piece that would make one more
          is not kept, which is said: a device sends pieces in order, and again until they are
          acknowledged.
Format  : `pieces` of a blob never overlap; `ready` bytes are there from its start, `received` in
          all. Of one that was put into the object store there are none: `put` is the sha256 that
          was seen there, `place` its URL. A blob is settled when it is whole and its record is
          there.
          One whose seq the device dropped before its record came is forgotten.
Recovery: where the record tells the blob's sha256 it is checked; pieces that do not fit it, or come
          with another size, are thrown away, which is said, and the device sends them again.
"""

import hashlib
import logging
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.protocol import batch, blob
from fleet.store.arrivals import Put
from fleet.store.coverage import Seqs, minus
from fleet.store.database import Transaction

log = logging.getLogger("ingest")
UNSETTLED_MAX = 100_000
ISLANDS_MAX = 256
STEP = 64  # pieces that are read at once
_READ = """
SELECT b.stream, b.seq, b.size_bytes, b.ready, b.received, b.record, b.settled, b.sha256,
    b.put, b.place
FROM ROWS($1) q JOIN blobs b
ON b.stream = CAST(q.value->>0 AS bigint) AND b.seq = CAST(q.value->>1 AS bigint)
"""
_PLACES = "SELECT start, size_bytes FROM pieces WHERE stream = $1 AND seq = $2 AND start >= $3"
_CONTENT = """
SELECT start, content FROM pieces WHERE stream = $1 AND seq = $2 AND start >= $3
ORDER BY start LIMIT $4
"""
_SAVE = """
INSERT INTO blobs (stream, seq, size_bytes, ready, received, record, settled, sha256, put, place)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (stream, seq) DO UPDATE
SET size_bytes = excluded.size_bytes, ready = excluded.ready, received = excluded.received,
record = excluded.record, settled = excluded.settled, sha256 = excluded.sha256,
put = excluded.put, place = excluded.place
"""
_ABANDONED = """
DELETE FROM blobs WHERE (stream, seq) IN (
    SELECT b.stream, b.seq FROM ROWS($1) q JOIN blobs b ON b.stream = CAST(q.value->>0 AS bigint)
    AND b.seq BETWEEN CAST(q.value->>1 AS bigint) AND CAST(q.value->>2 AS bigint)
    WHERE NOT b.settled AND NOT b.record
) RETURNING stream, seq
"""
_PIECES = ("stream", "seq", "start", "size_bytes", "content")


class _Body(Struct):
    """What a record's body may say of its blob."""

    sha256: str = ""


class Blob(Struct):
    """One blob, as its row says. `islands` are the ranges of bytes beyond `ready`, once needed."""

    stream: int
    seq: int
    size_bytes: int
    ready: int = 0
    received: int = 0
    record: bool = False
    settled: bool = False
    sha256: str = ""
    put: str = ""
    place: str = ""
    islands: Seqs | None = None


class Blobs:
    """Those that one transaction touches."""

    def __init__(self, transaction: Transaction) -> None:
        self.done = 0
        self._transaction = transaction
        self._blobs: dict[tuple[int, int], Blob] = {}
        self._unsettled: set[tuple[int, int]] = set()  # as they were
        self._changed: set[tuple[int, int]] = set()
        self._pieces: dict[tuple[int, int], dict[int, bytes]] = {}  # not written yet, by start

    async def read(self, keys: set[tuple[int, int]]) -> None:
        """The rows of these blobs, by stream and seq."""
        if not keys:
            return
        for row in await self._transaction.fetch(_READ, [list(key) for key in sorted(keys)]):
            found = Blob(*row)
            found.record, found.settled = bool(found.record), bool(found.settled)
            self._blobs[found.stream, found.seq] = found
            if not found.settled:
                self._unsettled.add((found.stream, found.seq))

    def of(self, stream: int, seq: int) -> Blob | None:
        """One that is begun."""
        return self._blobs.get((stream, seq))

    def with_record(self, stream: int, first: int, last: int) -> set[int]:
        """Seqs of the records in first..last that are stored, and their blob not whole."""
        return {
            one.seq
            for one in self._blobs.values()
            if one.record and one.stream == stream and first <= one.seq <= last
        }

    def opened(self, stream: int) -> int:
        """How many more of a stream are unsettled now than were before."""
        now = {key for key, one in self._blobs.items() if not one.settled}
        return sum(key[0] == stream for key in now) - sum(
            key[0] == stream for key in self._unsettled
        )

    async def expect(self, stream: int, event: batch.Event) -> Blob:
        """The blob of a record that is stored now."""
        found = self._blobs.setdefault(
            (stream, event.sequence), Blob(stream, event.sequence, event.blobsize)
        )
        if found.size_bytes != event.blobsize:
            await self._throw_away(found)
            found.size_bytes = event.blobsize
        found.record = True
        found.sha256 = _sha256(bytes(event.data))
        self._changed.add((stream, event.sequence))
        return found

    async def add(self, stream: int, unsettled: int, header: blob.Header, content: bytes) -> str:
        """Keep what is new of a piece; why it is refused, or nothing."""
        if cause := await self._begin(stream, unsettled, header.seq, header.size):
            return cause
        await self._keep(self._blobs[stream, header.seq], header.start, content)
        return ""

    async def put(self, stream: int, unsettled: int, put: Put) -> str:
        """The object store has it, whole; why that is refused, or nothing."""
        if cause := await self._begin(stream, unsettled, put.ask.seq, put.ask.size):
            return cause
        found = self._blobs[stream, put.ask.seq]
        await self._throw_away(found)
        found.ready = found.received = put.ask.size
        found.put, found.place = put.ask.sha256, put.place
        return ""

    async def _begin(self, stream: int, unsettled: int, seq: int, size_bytes: int) -> str:
        """Find or make the blob, of this size; why that cannot be, or nothing."""
        found = self._blobs.get((stream, seq))
        if found is None:
            if unsettled + self.opened(stream) >= UNSETTLED_MAX:
                return f"{UNSETTLED_MAX} blobs of this stream are not finished yet"
            found = self._blobs[stream, seq] = Blob(stream, seq, size_bytes)
        if found.size_bytes != size_bytes:
            if found.record:
                return f"the blob has {found.size_bytes} bytes by its record, not {size_bytes}"
            await self._throw_away(found)
            found.size_bytes = size_bytes
        self._changed.add((stream, seq))
        return ""

    async def settle(self, whole: Blob) -> str:
        """Its bytes and its record are there: check it. Why it is thrown away, or nothing."""
        self._changed.add((whole.stream, whole.seq))
        if whole.sha256 and (whole.put or await self._digest(whole)) != whole.sha256:
            await self._throw_away(whole)
            return "the blob is not what its record says (sha256): it was thrown away"
        whole.settled = True
        self.done += 1
        return ""

    async def abandon(self, spans: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        """After `save`: the records of these seqs, by stream, first and last, will not come. Forget
        what of their blobs is there; how many that were, by stream."""
        gone: dict[int, int] = {}
        if spans:
            rows = await self._transaction.fetch(_ABANDONED, [list(span) for span in spans])
            await self._transaction.many(
                "DELETE FROM pieces WHERE stream = $1 AND seq = $2", [tuple(row) for row in rows]
            )
            for stream, _ in rows:
                gone[stream] = gone.get(stream, 0) + 1
        return gone

    async def save(self) -> None:
        """Write what is new."""
        await self._flush()
        if self._changed:
            changed = [self._blobs[key] for key in sorted(self._changed)]
            await self._transaction.many(_SAVE, [msgspec.structs.astuple(b)[:-1] for b in changed])

    async def _keep(self, begun: Blob, start: int, content: bytes) -> None:
        """Of a piece, the bytes that are not there yet."""
        islands = await self._islands(begun)
        new = minus([(start, start + len(content) - 1)], [(0, begun.ready - 1), *islands])
        islands = _together([(0, begun.ready - 1), *islands, *new])
        if len(islands) > 1 + ISLANDS_MAX:
            word = "stream %d: a piece of the blob of record #%d is not kept: too much is missing"
            log.warning(f"{word} before it", begun.stream, begun.seq)
            return
        pending = self._pieces.setdefault((begun.stream, begun.seq), {})
        for a, b in new:
            pending[a] = content[a - start : b - start + 1]
            begun.received += b - a + 1
        begun.ready = islands[0][1] + 1
        begun.islands = islands[1:]

    async def _islands(self, begun: Blob) -> Seqs:
        """The ranges of its bytes that lie beyond what is contiguous."""
        if begun.islands is None:
            begun.islands = []
            if begun.received > begun.ready:
                rows = await self._transaction.fetch(_PLACES, begun.stream, begun.seq, begun.ready)
                begun.islands = _together([(start, start + size - 1) for start, size in rows])
        return begun.islands

    async def _digest(self, whole: Blob) -> str:
        pending = self._pieces.get((whole.stream, whole.seq), {})
        if sum(map(len, pending.values())) == whole.size_bytes:  # nothing of it is written yet
            return hashlib.sha256(b"".join(pending[at] for at in sorted(pending))).hexdigest()
        await self._flush()
        digest, at = hashlib.sha256(), 0
        while rows := await self._transaction.fetch(_CONTENT, whole.stream, whole.seq, at, STEP):
            for start, content in rows:
                digest.update(content)
                at = start + len(content)
        return digest.hexdigest()

    async def _throw_away(self, begun: Blob) -> None:
        self._pieces.pop((begun.stream, begun.seq), None)
        await self._transaction.execute(
            "DELETE FROM pieces WHERE stream = $1 AND seq = $2", begun.stream, begun.seq
        )
        begun.ready = begun.received = 0
        begun.put = begun.place = ""
        begun.islands = []

    async def _flush(self) -> None:
        rows = [
            (*key, start, len(content), content)
            for key, pieces in self._pieces.items()
            for start, content in pieces.items()
        ]
        self._pieces.clear()
        if rows:
            await self._transaction.copy("pieces", _PIECES, rows)


def _together(ranges: Seqs) -> Seqs:
    """Ranges that do not overlap, in order; those without a gap between them are one."""
    found: Seqs = []
    for first, last in sorted(ranges):
        if found and first == found[-1][1] + 1:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def _sha256(body: bytes) -> str:
    """The sha256 that a record's body tells of its blob, if it does."""
    try:
        return msgspec.json.decode(body, type=_Body).sha256
    except msgspec.DecodeError:
        return ""
