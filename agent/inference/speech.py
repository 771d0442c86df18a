"""Hearing: the agent's side of the speech engine, for many streams at once.

Calls that arrive while one is under way travel together in the next: the more streams wait, the
larger the batch, and nobody waits for a timer.
"""

import asyncio
import contextlib

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import DomainError
from agent.inference import wire
from agent.inference.domain import Domain


class Heard(Struct, frozen=True):
    """What became of some sound: clean 16-bit samples and a speech probability per hop.

    Both begin where the last answer's ended. The samples lag the sound given by up to two hops
    until the stream ends; the probabilities belong to the hops in the order they were given.
    """

    clean: NDArray[np.int16]
    speech: NDArray[np.float32]


class Request:
    """One caller's sound, waiting for its turn."""

    def __init__(self, part: wire.Part, pcm: bytes) -> None:
        self.part = part
        self.pcm = pcm
        self.done: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()


class Speech:
    """Opens streams in the audio domain and batches their calls."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._waiting: list[Request] = []
        self._arrived = asyncio.Event()
        self._streams = 0

    @property
    def hop_samples(self) -> int:
        """Samples a speech probability stands for."""
        return self.domain.model.manifest.hop_samples

    async def open(self) -> "Stream":
        """A new stream, once the domain is ready."""
        await self.domain.ready.wait()
        self._streams += 1
        return Stream(self, self._streams, self.domain.life)

    async def run(self) -> None:
        """Serve the waiting calls, each time all of them (one a stream) in one message."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            try:
                heard = await self._listen(batch)
            except DomainError as error:
                for request in batch:
                    if not request.done.cancelled():
                        request.done.set_exception(error)
                continue
            for request, answer in zip(batch, heard, strict=True):
                if not request.done.cancelled():
                    request.done.set_result(answer)

    async def ask(self, request: Request) -> Heard:
        """Queue one call; a stream has at most one under way."""
        self._waiting.append(request)
        self._arrived.set()
        return await request.done

    async def _listen(self, batch: list[Request]) -> list[Heard]:
        call = wire.Listen([request.part for request in batch])
        answer, body = await self.domain.call(call, [r.pcm for r in batch], wire.Heard)
        clean = np.frombuffer(body, np.int16, sum(samples for samples, _ in answer.parts))
        speech = np.frombuffer(body, np.float32, offset=clean.nbytes)
        heard, at, hop = [], 0, 0
        for samples, hops in answer.parts:
            heard.append(Heard(clean[at : at + samples], speech[hop : hop + hops]))
            at, hop = at + samples, hop + hops
        return heard


class Stream:
    """One stream of sound through the domain, in order; it dies with the child it was opened in."""

    def __init__(self, speech: Speech, number: int, life: int) -> None:
        self._speech = speech
        self._number = number
        self._life = life

    async def hear(self, pcm: bytes, *, end: bool = False) -> Heard:
        """The next sound of this stream. Raises DomainError when the stream is gone."""
        if self._life != self._speech.domain.life:
            raise DomainError(f"domain {self._speech.domain.name} has been restarted")
        part = wire.Part(self._number, len(pcm) // 2, end)
        return await self._speech.ask(Request(part, pcm))

    async def abandon(self) -> None:
        """Free what the domain remembers of a stream that nobody will go on with."""
        with contextlib.suppress(DomainError):  # then it is free already
            await self.hear(b"", end=True)
