"""Hearing: the agent's side of the speech engine, for many streams at once.

Each call brings its stream's memory and takes the new one away, so the calls of all streams travel
together, to whatever instance is free. Live streams bring a hop each, and a call costs far more
than a hop in it: they wait a little for each other. No call can be cut short: while there are live
streams, long sound goes in pieces, few at once, so that hops do not wait for it. A call is repeated
until a worker answers it.
One that was there when a worker died is repeated alone, after a call that holds only silence: what
kills its worker STRIKES times although silence does not is given back as poison.
"""

import asyncio
import logging
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.clock import Clock
from agent.errors import CallLost, DomainError, PoisonError
from agent.inference import wire
from agent.inference.domains.domain import Domain
from agent.inference.domains.work import Class, Result, Work
from agent.records import RATE_HZ

log = logging.getLogger("domain")
FRESH = b""  # the memory of a stream that has not begun
HEADS_MAX = 256
STRIKES = 3  # workers that one call may cost
PATIENCE_S = 3600.0  # a call has no deadline: its sound waits in the store
RETRY_S = 0.1
LIVE_HOPS_MAX = 4  # a call with more is worth its cost, and waits for no other
BESIDE_LIVE_S = 1.0  # since the last live call
PIECE_HOPS = 16  # of long sound beside live streams
PIECE_ROWS = 16  # that a piece counts in a batch: its hops, as live calls do


class Heard(Struct, frozen=True, gc=False):
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


class Speech:
    """The calls of all streams to the audio domain, and its model `model`."""

    def __init__(self, domain: Domain, model: str, clock: Clock) -> None:
        self.domain = domain
        self._model = model
        self._clock = clock
        self._live_s = -BESIDE_LIVE_S  # when the last live call was made
        self._suspicion = asyncio.Lock()  # suspects are heard one after the other
        self._heads: dict[tuple[int, bool], msgspec.Raw] = {}

    async def ready(self) -> None:
        """Until the model is known and can be asked."""
        await self.domain.ready.wait()

    @property
    def label(self) -> str:
        """The model that hears, as results are stamped with."""
        return self.domain.models[self._model].label

    @property
    def ep(self) -> str:
        """The execution provider it runs on; empty while it is not known."""
        loaded = self.domain.loaded(self._model)
        return loaded.ep if loaded else ""

    @property
    def hop_samples(self) -> int:
        """Samples a speech probability stands for."""
        return int(self.domain.models[self._model].manifest.options["hop_samples"])

    async def hear(
        self, pcm: bytes, memory: bytes = FRESH, *, end: bool = False, klass: Class | None = None
    ) -> Heard:
        """The next 16-bit PCM of a stream, with the memory its last answer came with.

        `klass` is how urgent it is; none: as the domain. Waits for as long as the domain is down:
        the sound is safe in the store. Raises PoisonError.
        """
        await self.domain.ready.wait()  # then it is known what a hop is
        size, heard = 2 * PIECE_HOPS * self.hop_samples, list[Heard]()
        while len(pcm) > size and self._beside_live:
            heard.append(await self._hear(pcm[:size], memory, end=False, klass=klass))
            pcm, memory = pcm[size:], heard[-1].memory
        heard.append(await self._hear(pcm, memory, end=end, klass=klass))
        return heard[0] if len(heard) == 1 else _joined(heard)

    @property
    def _beside_live(self) -> bool:
        return self._clock.monotonic() - self._live_s < BESIDE_LIVE_S

    async def _hear(self, pcm: bytes, memory: bytes, *, end: bool, klass: Class | None) -> Heard:
        """One call."""
        strikes = 0
        while True:
            await self.domain.ready.wait()
            try:
                if strikes == 0:
                    return await self._ask(pcm, memory, end, klass)
                async with self._suspicion:
                    await self._ask(bytes(2 * self.hop_samples), FRESH, True, klass)
                    try:
                        return await self._ask(pcm, memory, end, klass, alone=True)
                    except CallLost:
                        strikes += 1
                        raise
            except CallLost as error:
                strikes = max(strikes, 1)
                if strikes > STRIKES:
                    raise self._poison(pcm) from error
                log.warning("%s; the work is repeated", error)
            except DomainError as error:
                log.warning("%s; the work is repeated", error)
                await asyncio.sleep(RETRY_S)

    def _poison(self, pcm: bytes) -> PoisonError:
        return PoisonError(
            f"{len(pcm) / 2 / RATE_HZ:.1f} s of sound ended the domain {self.domain.name} "
            f"{STRIKES} times",
            "it is kept as a dead letter; send it to those who made the model",
        )

    async def _ask(
        self, pcm: bytes, memory: bytes, end: bool, klass: Class | None, *, alone: bool = False
    ) -> Heard:
        loaded = self.domain.loaded(self._model)
        if loaded is None:
            raise DomainError(f"domain {self.domain.name} is not ready: {self.domain.cause}")
        memory = memory or bytes(4 * loaded.memory_size)
        samples = len(pcm) // 2
        live = samples <= LIVE_HOPS_MAX * self.hop_samples
        if klass is None:  # live sound goes before what is heard in long stretches
            klass = self.domain.klass if live else max(self.domain.klass, Class.INTERACTIVE)
        now_s = self._clock.monotonic()
        if live and pcm:
            self._live_s = now_s
        work = Work(
            self._model,
            self._head(samples, end),
            [pcm, memory],
            size_bytes=len(pcm) + len(memory),
            klass=klass,
            key=live,
            now_s=now_s,
            timeout_s=PATIENCE_S,
            rows=PIECE_ROWS if self._beside_live and not live else 1,
            once=True,
            alone=alone,
            gathers=live,
        )
        self.domain.submit(work)
        try:
            result = await work.done
        except asyncio.CancelledError:
            self.domain.cancel(work)
            raise
        return self._heard(result)

    def _head(self, samples: int, end: bool) -> msgspec.Raw:
        """Nearly always the same."""
        found = self._heads.get((samples, end))
        if found is None:
            found = msgspec.Raw(msgspec.msgpack.encode(wire.Part(samples, end)))
            if len(self._heads) < HEADS_MAX:
                self._heads[samples, end] = found
        return found

    @staticmethod
    def _heard(result: Result) -> Heard:
        try:
            head = msgspec.msgpack.decode(result.head, type=wire.Heard)
            clean = np.frombuffer(result.body, np.int16, head.samples)
            speech = np.frombuffer(result.body[clean.nbytes :], np.float32, head.hops)
        except (msgspec.MsgspecError, ValueError) as error:  # its worker lost its senses
            raise CallLost(f"{result.model}: an answer that makes no sense: {error}") from error
        return Heard(clean, speech, bytes(result.body[clean.nbytes + speech.nbytes :]))


def _joined(pieces: list[Heard]) -> Heard:
    """The answers of calls that followed each other, as one."""
    clean = np.concatenate([one.clean for one in pieces])
    speech = np.concatenate([one.speech for one in pieces])
    return Heard(clean, speech, pieces[-1].memory)
