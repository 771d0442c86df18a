"""From raw audio in the store to segments in the store, through the audio domain.

The listener reads what the recorder committed, never what the recorder has in memory, so a first
start and a restart after any crash are one path: go on at the stored position. The position holds
what the model remembered there, so the sound is heard as if nothing had happened. Memory is bounded
by what the segmenter says, for a long stretch's FLAC goes into the store while it is open.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from agent.audio import codec
from agent.audio.flac import Flac
from agent.audio.segmenter import NONE, Segmenter, Stretch
from agent.config import Segments
from agent.errors import EpochOver, PoisonError, StoreError
from agent.forms import Keep
from agent.health.conditions import Conditions
from agent.inference.speech import FRESH, Speech, lag
from agent.records import RATE_HZ, Position, Raw, Segment, Stamp, raw_stream
from agent.store.drafts import Drafted
from agent.store.spool import Dead, Heard, Spool
from agent.tasks import Anew
from agent.words import counted

log = logging.getLogger("heard")
RELEASE_S = 5.0  # silence is let go of at least this often
READ_RECORDS = 4
RETRY_S = 1.0
DAMAGED = "its row in the store is damaged"


# Told after each commit: the segments that it holds, with their seqs. It must not wait.
Follower = Callable[[Sequence[tuple[int, Segment]]], None]


class Step(NamedTuple):
    """A raw record on its way, and what the model remembered before it."""

    seq: int
    raw: Raw
    stamp: Stamp
    memory: bytes


class Passage:
    """One take on its way through the domain, and the raw records it may still need."""

    def __init__(self, take: int, segmenter: Segmenter, hop: int, memory: bytes) -> None:
        self.take = take
        self.segmenter = segmenter
        self.memory = memory
        self.flac: Flac | None = None  # of the open stretch, if that is long
        self.steps: deque[Step] = deque()
        self.released = 0  # samples up to which raw audio was let go of
        self._hop = hop

    def goes_on_with(self, raw: Raw) -> bool:
        """Whether this is what comes next; not where a take broke off, or sound was evicted."""
        last = self.steps[-1].raw
        return (raw.take, raw.offset) == (last.take, last.offset + last.samples)

    def position(self, after_seq: int, model: str, *, ended: bool) -> Position:
        """Where another run would have to begin, once everything up to `after_seq` is heard."""
        segmenter = self.segmenter
        if ended:
            return Position(self.take, segmenter.floor, next_seq=after_seq + 1)
        while len(self.steps) > 1 and self._reaches(self.steps[1], segmenter.needed):
            self.steps.popleft()
        first = self.steps[0]
        floor, until = segmenter.floor, segmenter.spoken_until
        return Position(self.take, floor, until, first.seq, model, first.memory)

    def thin(self) -> None:
        """Of a long stretch, hold only the steps at its beginning, and those for what follows."""
        begun, later = self.segmenter.begun, self.segmenter.needed_later
        if begun == NONE:
            return
        first = [step for step in self.steps if step.raw.offset <= begun]
        rest = deque(step for step in self.steps if step.raw.offset > begun)
        while len(rest) > 1 and self._reaches(rest[1], later):
            rest.popleft()
        self.steps = deque([*first, *rest])

    def _reaches(self, step: Step, needed: int) -> bool:
        """Whether a run from this step on gets all the clean sound from sample `needed` on."""
        return step.raw.offset - lag(step.memory, self._hop).clean <= needed

    def heard_us(self, start: int) -> int:
        """The wall label of the raw record that holds sample `start`."""
        within = [step.stamp for step in self.steps if step.raw.offset <= start]
        return (within[-1] if within else self.steps[0].stamp).wall_us


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
        self._position = Position()
        self._asked = True  # perhaps there is a dead letter to be heard again
        self.heard_rows = 0  # since the start
        self.hears = False  # something waits to be heard, and its turn has come
        self.followers: list[Follower] = []
        self._life = Anew(self._hear_on)

    @property
    def arrived(self) -> asyncio.Event:
        """Set whenever raw audio has been committed."""
        return self._arrived

    def wake(self) -> None:
        """Somebody decided about dead letters: there may be one to hear again."""
        self._asked = True
        self._arrived.set()

    async def run(self) -> None:
        """Hear on from the stored position; when the store fails, again from there."""
        await self._life.run()

    async def restart(self, _: str) -> str:
        """Begin anew, as at a start. What was done, in words."""
        await self._life.restart()
        return "hearing begins anew at the stored position"

    def hang(self, seconds: float) -> None:
        """Stand still with something to hear, as something in it may; for tests of the watch."""
        self.hears = True
        self._life.hang(seconds)

    async def _hear_on(self) -> None:
        while True:
            self.hears = False
            try:
                await self._listen()
            except EpochOver:
                log.info("%s: hearing goes on in a new store file", self.source)
            except StoreError as error:
                self.hears = False  # its turn comes once the store takes what is heard
                self._conditions.hold(
                    "hearing_stopped", self.source, "critical", str(error), error.hint
                )
                await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        await self._speech.ready()
        await self._spool.drafts.forget(self.source)
        self._position = await self._spool.position(self.source)
        self._asked = True
        await self._tell_dead()
        passage: Passage | None = None
        seq = self._position.next_seq
        while True:
            self._arrived.clear()
            rows = await self._spool.waiting(self.source, seq, READ_RECORDS)
            self.hears = bool(rows)
            if not rows and not await self._retry():
                await self._arrived.wait()
            for row in rows:
                passage = await self._hear(passage, row)
                seq = row[0] + 1
                self.heard_rows += 1
            if rows:
                self._conditions.clear("hearing_stopped", self.source)

    async def _hear(self, passage: Passage | None, row: Heard) -> Passage | None:
        """One raw record through the domain; the passage it belongs to, None when that ended."""
        seq, raw, stamp, pcm = row
        if raw is None:
            await self._pass_over(passage, seq)
            return None
        if passage is not None and not passage.goes_on_with(raw):
            await self._end(passage, b"", seq - 1)
            passage = None
        if passage is None:
            passage = self._begin(raw)
        passage.steps.append(Step(seq, raw, stamp, passage.memory))
        try:
            if raw.end:
                await self._end(passage, pcm, seq)
                return None
            heard = await self._speech.hear(pcm, passage.memory)
        except PoisonError as error:
            await self._bury(passage, seq, error)
            return None
        passage.memory = heard.memory
        found = passage.segmenter.push(heard.clean, heard.speech)
        silent = passage.segmenter.needed - passage.released > RELEASE_S * RATE_HZ
        if found or silent:
            passage.released = passage.segmenter.needed
            await self._commit(passage, found, seq, ended=False)
        await self._stream(passage)
        return passage

    async def _stream(self, passage: Passage) -> None:
        """What is sure of a long open stretch goes into the store; what was forgotten goes out."""
        segmenter = passage.segmenter
        if passage.flac and passage.flac.begun != segmenter.begun:
            passage.flac = None
            await self._spool.drafts.forget(self.source)
        pcm = segmenter.take()
        if len(pcm):
            passage.flac = passage.flac or Flac(self.source, segmenter.begun, self._spool.drafts)
            await passage.flac.push(pcm)
            passage.thin()

    def _begin(self, raw: Raw) -> Passage:
        """The passage of a raw record's take: gone on with at the stored position, or new."""
        position, self._position = self._position, Position()  # it serves once, after a start
        hop, model = self._speech.hop_samples, self._speech.label
        if raw.take != position.take:
            position = Position(raw.take)
        memory = position.memory if position.model == model else FRESH
        behind = lag(memory, hop)
        segmenter = Segmenter(
            self._rules,
            hop,
            raw.offset - behind.judged,
            raw.offset - behind.clean,
            position.floor,
            position.spoken_until,
        )
        return Passage(raw.take, segmenter, hop, memory)

    async def _end(self, passage: Passage, pcm: bytes, seq: int) -> None:
        await self._commit(passage, await self._rest(passage, pcm), seq, ended=True)

    async def _rest(self, passage: Passage, pcm: bytes) -> list[Stretch]:
        """What the passage still gives, with the last sound of it. Raises PoisonError."""
        heard = await self._speech.hear(pcm, passage.memory, end=True)
        last = passage.steps[-1].raw
        end = last.offset + last.samples
        clean = heard.clean[: end - passage.segmenter.given]  # the last hop was filled up
        return passage.segmenter.push(clean, heard.speech) + passage.segmenter.finish(end)

    async def _retry(self) -> bool:
        """Hear one dead letter again that somebody asked for, alone; whether there was one.

        What comes before and behind it was heard as if it were not there, so it stands for itself.
        """
        if not self._asked:
            return False
        self._asked = False
        row = await self._spool.retrying(self.source)
        if row is None:
            await self._tell_dead()  # somebody may have given some up
            return False
        self._asked = True  # there may be more
        seq, raw, stamp, pcm = row
        try:
            found = [] if raw is None else await self._again(seq, raw, stamp, pcm)
        except PoisonError as error:
            await self._spool.bury(self.source, (seq, str(error)))
        else:
            if raw is None:
                await self._spool.bury(self.source, (seq, DAMAGED))
            else:
                await self._spool.redeem(self.source, seq, found)
                said = counted(len(found), "segment")
                log.info("%s.raw #%d: heard, %s", self.source, seq, said)
        await self._tell_dead()
        return True

    async def _again(
        self, seq: int, raw: Raw, stamp: Stamp, pcm: bytes
    ) -> list[tuple[Segment, bytes | Drafted]]:
        hop, at = self._speech.hop_samples, raw.offset
        segmenter = Segmenter(self._rules, hop, at, at, floor=at)
        passage = Passage(raw.take, segmenter, hop, FRESH)
        passage.steps.append(Step(seq, raw, stamp, FRESH))
        stretches = await self._rest(passage, pcm)
        return [await self._segment(passage, stretch) for stretch in stretches]

    async def _pass_over(self, passage: Passage | None, seq: int) -> None:
        """A row that cannot be read any more: hear on behind it."""
        if passage is not None:
            await self._end(passage, b"", seq - 1)
        dead = (seq, DAMAGED)
        await self._spool.keep(self.source, [], Position(next_seq=seq + 1), self._keep, dead)
        self._tell([])
        await self._tell_dead()

    async def _bury(self, passage: Passage, seq: int, error: PoisonError) -> None:
        """Give up the passage's newest record; what came before it ends there."""
        end = passage.steps[-1].raw.offset
        found = []
        with suppress(PoisonError):  # then without the last hop
            heard = await self._speech.hear(b"", passage.memory, end=True)
            clean = heard.clean[: max(0, end - passage.segmenter.given)]
            found = passage.segmenter.push(clean, heard.speech)
        found += passage.segmenter.finish(end)
        await self._commit(passage, found, seq, ended=True, dead=(seq, str(error)))
        await self._tell_dead()

    async def _tell_dead(self) -> None:
        dead = await self._spool.dead(self.source)
        if not dead:
            self._conditions.clear("dead_letters", self.source)
            return
        seq, cause = dead[-1]
        what = counted(
            len(dead), "raw record is held as a dead letter", "raw records are held as dead letters"
        )
        self._conditions.hold(
            "dead_letters",
            self.source,
            "warning",
            f"{what}; the last, #{seq}: {cause}",
            f"hearing goes on behind them; `holdfast outbox show {raw_stream(self.source)} --dead` "
            "lists them, `outbox retry` has them heard again, `outbox drop` gives them up",
        )

    async def _commit(
        self,
        passage: Passage,
        found: list[Stretch],
        seq: int,
        *,
        ended: bool,
        dead: Dead | None = None,
    ) -> None:
        """The segments and the position behind them, in one transaction."""
        kept = [await self._segment(passage, stretch) for stretch in found]
        model = self._speech.label
        position = passage.position(seq, model, ended=ended)
        seqs = await self._spool.keep(self.source, kept, position, self._keep, dead)
        for number, (segment, _) in zip(seqs, kept, strict=True):
            log.info(
                "%s.segments #%d  %s  %.1f s of speech at %.1f s, p %.2f, %.0f KiB FLAC: kept",
                *(self.source, number, segment.name, segment.samples / RATE_HZ),
                *(segment.start / RATE_HZ, segment.speech, segment.size_bytes / 1024),
            )
        self._tell([(number, one) for number, (one, _) in zip(seqs, kept, strict=True)])
        if ended:
            await self._stream(passage)

    def _tell(self, kept: Sequence[tuple[int, Segment]]) -> None:
        for follower in list(self.followers):
            follower(kept)

    async def _segment(self, passage: Passage, stretch: Stretch) -> tuple[Segment, bytes | Drafted]:
        flac, digest = await self._encoded(passage, stretch)
        segment = Segment(
            id=f"{self.source}/{passage.take}/{stretch.start}",
            source=self.source,
            take=passage.take,
            name=passage.steps[-1].raw.name,
            start=stretch.start,
            samples=stretch.samples,
            speech=round(stretch.speech, 4),
            heard_us=passage.heard_us(stretch.start),
            model=self._speech.label,
            ep=self._speech.ep,
            sha256=digest,
            size_bytes=len(flac) if isinstance(flac, bytes) else flac.size_bytes,
        )
        return segment, flac

    async def _encoded(self, passage: Passage, stretch: Stretch) -> tuple[bytes | Drafted, str]:
        """A stretch's FLAC and its sha256."""
        if passage.flac is None or passage.flac.begun != stretch.begun:
            return await asyncio.to_thread(codec.encode, stretch.pcm)
        flac, passage.flac = passage.flac, None
        return await flac.finish(stretch.pcm)
