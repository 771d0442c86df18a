"""A live stream: PCM comes, its denoised PCM goes back hop by hop, and it is kept beside that.

What comes while a call is out goes together in the next one, so the way back is as short as the
domain can make it. What is kept goes through the store, and is heard again from there.

Limits: AHEAD_S of sound wait for being heard; then whoever brings it has to wait. One call takes
CALL_S of it. One who does not take his answers is let go after SLOW_S.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np

from agent.audio.codec import Pcm, Resampler
from agent.audio.keeping import Keeping
from agent.audio.segmenter import NONE, Segmenter
from agent.clock import Clock
from agent.config import Segments
from agent.errors import HoldfastError, RequestError
from agent.inference.speech import FRESH, Heard, Speech
from agent.records import RATE_HZ, Segment
from agent.talk_events import (
    End,
    Event,
    Ready,
    SegmentKept,
    SpeechBegin,
    SpeechEnd,
    Trouble,
)
from agent.tasks import Crew

AHEAD_S = 2.0
CALL_S = 0.5
SLOW_S = 10.0
WAITING_S = 1.0  # for an answer of the domain; then the client is told
NO_SOUND = np.zeros(0, np.int16)
SAMPLE_BYTES = 2


class Form(NamedTuple):
    """What 16-bit PCM comes."""

    rate_hz: int = RATE_HZ
    channels: int = 1


class Answer(Protocol):
    """Who takes the answers; both wait where he does not, and raise ConnectionError."""

    @property
    def blocked_s(self) -> float:
        """For how long he has not taken what he is given."""

    async def sound(self, pcm: bytes) -> None:
        """The next denoised samples."""

    async def tell(self, event: Event) -> None:
        """An event."""


class Talk:
    """One stream."""

    def __init__(
        self,
        source: str,
        speech: Speech,
        rules: Segments,
        form: Form,
        answer: Answer,
        keeping: Keeping | None,
        crew: Crew,
        clock: Clock,
    ) -> None:
        self.fault: HoldfastError | None = None  # why it was broken off
        self._source = source
        self._speech = speech
        self._rules = rules
        self._form = form
        self._answer = answer
        self._keeping = keeping
        self._crew = crew
        self._clock = clock
        plain = form == Form()
        self._resampler = None if plain else Resampler(form.rate_hz)
        self._given: list[bytes] = []
        self._given_bytes = 0
        self._some = asyncio.Event()  # or it has ended
        self._room = asyncio.Event()
        self._ended = False
        self._samples = 0  # that came, at 16 kHz
        self._answered = 0  # that went back
        self._segments = 0
        self._spoke_from = NONE
        self._asked_s: float | None = None  # since when the domain owes an answer
        self._told = False  # that it does
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        """Hear from now on; the task ends when all is answered."""
        self._task = asyncio.create_task(self._run())
        return self._task

    def break_off(self, fault: HoldfastError) -> None:
        """End it now, with what the client is to be told."""
        if self._task and not self._task.done() and self.fault is None:
            self.fault = fault
            self._task.cancel()

    async def give(self, content: bytes) -> None:
        """The next frames; waits while there is too much to hear. Raises RequestError."""
        width = SAMPLE_BYTES * self._form.channels
        if len(content) % width:
            raise RequestError(
                f"a message of {len(content)} bytes", f"send whole frames of {width} bytes"
            )
        await self._push(self._converted(content, last=False) if self._resampler else content)

    async def end(self) -> None:
        """There is no more."""
        if self._resampler:
            await self._push(self._converted(b"", last=True))
        self._ended = True
        self._some.set()

    def look(self) -> None:
        """From time to time: whether client and domain do what they should."""
        blocked_s = self._answer.blocked_s
        if blocked_s > SLOW_S:
            self.break_off(
                RequestError(
                    f"the answers were not taken for {blocked_s:.0f} s", "read what is sent"
                )
            )
        elif not self._told and self._asked_for_s > WAITING_S:
            self._told = True
            self._tell(self._waiting())
        if self._keeping:
            self._keeping.flush()

    @property
    def _asked_for_s(self) -> float:
        """For how long the domain owes an answer."""
        return 0.0 if self._asked_s is None else self._clock.monotonic() - self._asked_s

    def tell_kept(self, kept: Sequence[tuple[int, Segment]]) -> None:
        """The listener has kept segments of this source."""
        for seq, one in kept:
            self._segments += 1
            start_s, length_s = one.start / RATE_HZ, one.samples / RATE_HZ
            stream = f"{one.source}.segments"
            place = (one.id, stream, seq, one.take)
            self._tell(SegmentKept(*place, start_s, length_s, one.speech))

    def _converted(self, content: bytes, *, last: bool) -> bytes:
        assert self._resampler is not None
        frames = np.frombuffer(content, "<i2").reshape(-1, self._form.channels)
        return self._resampler.push(frames.astype(np.float32) / 32768.0, last=last).tobytes()

    async def _push(self, pcm: bytes) -> None:
        if not pcm:
            return
        self._given.append(pcm)
        self._given_bytes += len(pcm)
        self._samples += len(pcm) // SAMPLE_BYTES
        self._some.set()
        if self._keeping:
            await self._keeping.give(pcm)
        while self._given_bytes > AHEAD_S * RATE_HZ * SAMPLE_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _run(self) -> None:
        memory = FRESH
        self._asked_s = self._clock.monotonic()
        await self._speech.ready()
        self._asked_s, self._told = None, False
        hop = self._speech.hop_samples
        segmenter = Segmenter(self._rules, hop)
        await self._answer.tell(self._ready())
        while await self._more():
            heard = await self._hear(self._take(), memory, segmenter)
            memory = heard.memory
            if len(heard.clean):
                await self._sound(heard.clean)
        if memory != FRESH:
            heard = await self._hear(b"", memory, segmenter, end=True)
            await self._sound(heard.clean[: self._samples - self._answered])
        if self._spoke_from != NONE:
            await self._answer.tell(SpeechEnd(segmenter.ended / RATE_HZ))
        await self._answer.tell(await self._totals())

    async def _more(self) -> bool:
        """Whether there is more, once that is known."""
        await self._some.wait()
        return self._given_bytes > 0

    def _take(self) -> bytes:
        """What is there, up to CALL_S of it."""
        pcm = self._given[0] if len(self._given) == 1 else b"".join(self._given)
        size = int(CALL_S * RATE_HZ) * SAMPLE_BYTES
        self._given = [pcm[size:]] if len(pcm) > size else []
        self._given_bytes = max(0, len(pcm) - size)
        if not self._given_bytes and not self._ended:
            self._some.clear()
        self._room.set()
        return pcm[:size]

    async def _hear(
        self, pcm: bytes, memory: bytes, segmenter: Segmenter, *, end: bool = False
    ) -> Heard:
        self._asked_s = self._clock.monotonic()
        heard = await self._speech.hear(pcm, memory, end=end)
        self._asked_s = None
        if self._told:
            self._told = False
            await self._answer.tell(self._ready())
        for at in range(len(heard.speech)):
            segmenter.push(NO_SOUND, heard.speech[at : at + 1])
            if (segmenter.begun != NONE) != (self._spoke_from != NONE):
                await self._turned(segmenter)
        return heard

    async def _turned(self, segmenter: Segmenter) -> None:
        """Speech has begun or ended; where a stretch is cut, it goes on."""
        if self._spoke_from == NONE:
            self._spoke_from = segmenter.begun
            await self._answer.tell(SpeechBegin(segmenter.begun / RATE_HZ))
        else:
            self._spoke_from = NONE
            await self._answer.tell(SpeechEnd(segmenter.ended / RATE_HZ))

    async def _sound(self, clean: Pcm) -> None:
        self._answered += len(clean)
        await self._answer.sound(clean.tobytes())

    async def _totals(self) -> End:
        heard = None
        if self._keeping:
            await self._keeping.end()
            heard = await self._keeping.heard()
        take = self._keeping.take if self._keeping else None
        return End(self._answered, self._answered / RATE_HZ, self._segments, take, heard)

    def _ready(self) -> Ready:
        hop = self._speech.hop_samples
        return Ready(self._source, self._keeping is not None, self._speech.label, hop, hop)

    def _waiting(self) -> Trouble:
        domain = self._speech.domain
        why = domain.cause or "it is being started, or has more to do than it can"
        return Trouble(
            f"domain {domain.name} does not answer: {why}",
            "nothing is lost; what comes is heard when it answers, which `ready` will say",
        )

    def _tell(self, event: Event) -> None:
        """Without waiting."""

        async def tell() -> None:
            with suppress(ConnectionError):
                await self._answer.tell(event)

        self._crew.begin(tell())
