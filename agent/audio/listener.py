"""From raw audio in the store to segments in the store, through the audio domain.

The listener reads what the recorder committed, never what it has in memory, so a crash, a restart
and a domain that died are one and the same path: go on at the stored position. The network starts
cold there, so CONTEXT_S of older sound is kept and heard first; `floor` keeps it from being given
out twice.
"""

import asyncio
import logging
from collections import deque

from agent.audio import codec
from agent.audio.segmenter import Segmenter, Stretch
from agent.config import Keep, Segments
from agent.errors import DomainError, StoreError
from agent.health.conditions import Conditions
from agent.inference.speech import Speech, Stream
from agent.records import RATE_HZ, Position, Raw, Segment, Stamp
from agent.store.spool import Heard, Spool

log = logging.getLogger("heard")
CONTEXT_S = 1.0
RELEASE_S = 5.0  # silence is let go of at least this often
READ_RECORDS = 4
RETRY_S = 1.0


class Passage:
    """One take on its way through the domain, and the raw records it may still need."""

    def __init__(self, take: int, stream: Stream, segmenter: Segmenter) -> None:
        self.take = take
        self.stream = stream
        self.segmenter = segmenter
        self.raw: deque[tuple[int, Raw, Stamp]] = deque()
        self.released = 0  # samples up to which raw audio was let go of

    def position(self, after_seq: int, *, ended: bool) -> Position:
        """Where another run would have to begin, once everything up to `after_seq` is heard."""
        floor = self.segmenter.floor
        if ended:
            return Position(self.take, floor, after_seq + 1)
        need = self.segmenter.needed - int(CONTEXT_S * RATE_HZ)
        while len(self.raw) > 1 and self.raw[1][1].offset <= need:
            self.raw.popleft()
        return Position(self.take, floor, self.raw[0][0])

    def heard_us(self, start: int) -> int:
        """The wall label of the raw record that holds sample `start`."""
        within = [stamp for _, raw, stamp in self.raw if raw.offset <= start]
        return (within[-1] if within else self.raw[0][2]).wall_us


class Listener:
    """Makes segments of one source's raw audio, for ever."""

    def __init__(
        self,
        source: str,
        keep: Keep,
        rules: Segments,
        spool: Spool,
        speech: Speech,
        conditions: Conditions,
        arrived: asyncio.Event,
    ) -> None:
        """`arrived` is set by the recorder whenever raw audio has been committed."""
        self.source = source
        self._keep = keep
        self._rules = rules
        self._spool = spool
        self._speech = speech
        self._conditions = conditions
        self._arrived = arrived
        self._passage: Passage | None = None

    async def run(self) -> None:
        """Hear on from the stored position; after any failure, again from there."""
        while True:
            try:
                await self._listen()
            except DomainError as error:
                log.warning("%s: %s; its audio is heard again from the store", self.source, error)
                await asyncio.sleep(0)
            except StoreError as error:
                self._conditions.hold(
                    "store_unwritable", self.source, "critical", str(error), error.hint
                )
                if self._passage:
                    await self._passage.stream.abandon()
                await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        self._passage = None
        position = await self._spool.position(self.source)
        seq = position.next_seq
        while True:
            self._arrived.clear()
            rows = await self._spool.waiting(self.source, seq, READ_RECORDS)
            if not rows:
                await self._arrived.wait()
            for row in rows:
                self._passage = await self._hear(self._passage, position, row)
                seq = row[0] + 1
            if rows:
                self._conditions.clear("store_unwritable", self.source)

    async def _hear(
        self, passage: Passage | None, position: Position, row: Heard
    ) -> Passage | None:
        """One raw record through the domain; the passage it belongs to, None when that ended."""
        seq, raw, stamp, pcm = row
        if passage is not None and passage.take != raw.take:  # broken off without an end
            await self._end(passage, b"", seq - 1)
            passage = None
        if passage is None:
            floor = position.floor if raw.take == position.take else 0
            segmenter = Segmenter(self._rules, self._speech.hop_samples, raw.offset, floor)
            passage = Passage(raw.take, await self._speech.open(), segmenter)
        passage.raw.append((seq, raw, stamp))
        if raw.end:
            await self._end(passage, pcm, seq)
            return None
        heard = await passage.stream.hear(pcm)
        found = passage.segmenter.push(heard.clean, heard.speech)
        silent = passage.segmenter.needed - passage.released > RELEASE_S * RATE_HZ
        if found or silent:
            passage.released = passage.segmenter.needed
            await self._commit(passage, found, seq, ended=False)
        return passage

    async def _end(self, passage: Passage, pcm: bytes, seq: int) -> None:
        heard = await passage.stream.hear(pcm, end=True)
        found = passage.segmenter.push(heard.clean, heard.speech)
        _, last, _ = passage.raw[-1]
        found += passage.segmenter.finish(last.offset + last.samples)
        await self._commit(passage, found, seq, ended=True)

    async def _commit(
        self, passage: Passage, found: list[Stretch], seq: int, *, ended: bool
    ) -> None:
        """The segments and the position behind them, in one transaction."""
        kept = [await self._segment(passage, stretch) for stretch in found]
        position = passage.position(seq, ended=ended)
        seqs = await self._spool.keep(self.source, kept, position, self._keep)
        for number, (segment, flac) in zip(seqs, kept, strict=True):
            log.info(
                "%s.segments #%d  %s  %.1f s of speech at %.1f s, p %.2f, %.0f KiB FLAC: kept",
                *(self.source, number, segment.name, segment.samples / RATE_HZ),
                *(segment.start / RATE_HZ, segment.speech, len(flac) / 1024),
            )

    async def _segment(self, passage: Passage, stretch: Stretch) -> tuple[Segment, bytes]:
        flac, digest = await asyncio.to_thread(codec.encode, stretch.pcm)
        segment = Segment(
            id=f"{self.source}/{passage.take}/{stretch.start}",
            source=self.source,
            take=passage.take,
            name=passage.raw[-1][1].name,
            start=stretch.start,
            samples=len(stretch.pcm),
            speech=round(stretch.speech, 4),
            heard_us=passage.heard_us(stretch.start),
            model=self._speech.domain.model.label,
            ep=self._speech.domain.ep,
            sha256=digest,
            size_bytes=len(flac),
        )
        return segment, flac
