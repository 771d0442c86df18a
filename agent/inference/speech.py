"""Hearing: the agent's side of the speech engine, for many streams at once.

Calls that arrive while one is under way travel together in the next: the more streams wait, the
larger the batch, and nobody waits for a timer. A call is repeated until a worker answers it. One
that was there when a worker died is repeated alone, after a call that holds only silence: what
kills its worker STRIKES times although silence does not is given back as poison.
"""

import asyncio
import logging
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import DomainError, PoisonError
from agent.inference import wire
from agent.inference.domain import CallLost, Domain
from agent.records import RATE_HZ

log = logging.getLogger("domain")
FRESH = b""  # the memory of a stream that has not begun
STRIKES = 3  # workers that one call may cost


class Heard(Struct, frozen=True):
    """What became of some sound: clean 16-bit samples, a speech probability per hop, the memory.

    Each begins where the last answer's ended; how far that is behind the sound says `lag`.
    """

    clean: NDArray[np.int16]
    speech: NDArray[np.float32]
    memory: bytes


class Lag(NamedTuple):
    """How many samples of a stream are not yet judged, and how many not yet given back clean."""

    judged: int
    clean: int


def lag(memory: bytes, hop: int) -> Lag:
    """How far the answers of a stream with this memory are behind the sound it was given."""
    if memory == FRESH:
        return Lag(0, 0)
    tail = np.frombuffer(memory[-8:], np.float32)
    rest = int(tail[wire.REST])
    return Lag(rest, rest + hop * int(tail[wire.BEGUN]))


class Request:
    """One stream's sound, waiting for its turn."""

    def __init__(self, pcm: bytes, memory: bytes, end: bool) -> None:
        self.part = wire.Part(len(pcm) // 2, end)
        self.pcm = pcm
        self.memory = memory
        self.strikes = 0
        self.done: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()


class Speech:
    """Batches the calls of all streams to the audio domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._waiting: list[Request] = []
        self._suspects: list[Request] = []  # were there when a worker died
        self._arrived = asyncio.Event()

    @property
    def hop_samples(self) -> int:
        """Samples a speech probability stands for."""
        return self.domain.model.manifest.hop_samples

    async def hear(self, pcm: bytes, memory: bytes = FRESH, *, end: bool = False) -> Heard:
        """The next 16-bit PCM of a stream, with the memory its last answer came with.

        Waits for as long as the domain is down: the sound is safe in the store. Raises PoisonError.
        """
        request = Request(pcm, memory, end)
        self._waiting.append(request)
        self._arrived.set()
        return await request.done

    async def run(self) -> None:
        """Serve the waiting calls, each time all of them in one message."""
        while True:
            await self._arrived.wait()
            await self.domain.ready.wait()
            try:
                if self._suspects:
                    await self._hear_alone(self._suspects[0])
                else:
                    await self._hear_together()
            except DomainError as error:
                log.warning("%s; the work is repeated", error)
            self._suspects = [one for one in self._suspects if not one.done.done()]
            self._waiting = [one for one in self._waiting if not one.done.done()]
            if not self._suspects and not self._waiting:
                self._arrived.clear()

    async def _hear_together(self) -> None:
        batch = list(self._waiting)
        try:
            answers = await self._listen(batch) if batch else []
        except CallLost:
            self._waiting = self._waiting[len(batch) :]
            self._suspects = batch
            raise
        for request, answer in zip(batch, answers, strict=True):
            if not request.done.cancelled():
                request.done.set_result(answer)

    async def _hear_alone(self, request: Request) -> None:
        await self._listen([Request(bytes(2 * self.hop_samples), FRESH, end=True)])
        try:
            (answer,) = await self._listen([request])
        except CallLost as error:
            request.strikes += 1
            if request.strikes == STRIKES and not request.done.cancelled():
                request.done.set_exception(
                    PoisonError(
                        f"{request.part.samples / RATE_HZ:.1f} s of sound ended the domain "
                        f"{self.domain.name} {STRIKES} times",
                        "it is kept as a dead letter; send it to those who made the model",
                    )
                )
            raise DomainError(str(error)) from error
        if not request.done.cancelled():
            request.done.set_result(answer)

    async def _listen(self, batch: list[Request]) -> list[Heard]:
        size = self.domain.memory_size
        fresh = bytes(4 * size)
        memories = [request.memory or fresh for request in batch]
        call = wire.Listen([request.part for request in batch])
        pcm = [request.pcm for request in batch]
        answer, body = await self.domain.call(call, [*pcm, *memories], wire.Heard)
        clean = np.frombuffer(body, np.int16, sum(samples for samples, _ in answer.parts))
        speech_bytes = 4 * sum(hops for _, hops in answer.parts)
        speech = np.frombuffer(body[clean.nbytes : clean.nbytes + speech_bytes], np.float32)
        rest = memoryview(body)[clean.nbytes + speech_bytes :]
        heard, at, hop = [], 0, 0
        for i, (samples, hops) in enumerate(answer.parts):
            memory = bytes(rest[4 * size * i : 4 * size * (i + 1)])
            heard.append(Heard(clean[at : at + samples], speech[hop : hop + hops], memory))
            at, hop = at + samples, hop + hops
        return heard
