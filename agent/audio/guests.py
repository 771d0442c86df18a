"""Sources that need no configuration: who brings sound by the API names one.

What they bring goes the way of all sound: a recorder keeps it, a listener makes segments of it from
the store. So what was accepted before a crash becomes segments after it, by `hear_former_sources`.

Limits: those of places.py; a recording has LENGTH_S_MAX, and SAMPLES_MAX over all its channels; the
RECENT_MAX newest segments are remembered although the far side has them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.audio import codec
from agent.audio.ears import Ears
from agent.audio.keeping import Keeping
from agent.audio.listener import Listener
from agent.audio.places import Places
from agent.audio.recordings import BLOCK_SAMPLES
from agent.audio.source import blocks
from agent.audio.talk import Answer, Form, Talk
from agent.clock import Clock
from agent.config import Audio
from agent.errors import (
    AudioError,
    BusyError,
    NotNow,
    NotThere,
    RequestError,
    StoreError,
    StoreFull,
    TooLarge,
)
from agent.inference.speech import Speech
from agent.records import RATE_HZ, Segment, Take
from agent.store.shelf import Shelf
from agent.store.spool import Spool
from agent.store.takes import POSTED, Takes
from agent.tasks import Crew
from agent.threads import apart

log = logging.getLogger("source")
TALKS_MAX = 256  # live streams at once
LENGTH_S_MAX = 3600.0  # of a recording: kept it is 115 MB, however small its file is
SAMPLES_MAX = 1 << 30  # of a recording: some seconds of decoding
RECENT_MAX = 4096
LOOK_S = 0.5
GOLDEN = 0.618  # steps of this spread any number of phases evenly
RETRY_S = 10.0
Room = Callable[[], Awaitable[int]]  # bytes that the store may still take
Numbered = tuple[int, Segment]


class Taken(NamedTuple):
    """A take, whether all of it is heard, and its segments with their seqs, as far as known."""

    take: Take
    heard: bool
    segments: list[Numbered]


class Kept(NamedTuple):
    """What knows the store: takes and positions, what is accepted, and what became of it."""

    spool: Spool
    takes: Takes
    shelf: Shelf
    room: Room


class Guest:
    """One such source."""

    def __init__(self, listener: Listener, task: asyncio.Task[None] | None) -> None:
        """`task` runs the listener; None: somebody else does."""
        self.listener = listener
        self.task = task
        self.turn = asyncio.Lock()  # of who brings sound
        self.posts = 0  # that have it, or wait for it
        self.news = asyncio.Event()  # set, and replaced, after each commit of the listener
        listener.followers.append(self._told)

    def _told(self, _: Sequence[Numbered]) -> None:
        self.wake()

    def wake(self) -> None:
        """Who waits for news looks again."""
        self.news.set()
        self.news = asyncio.Event()


class Guests:
    """All of them. An async context manager; `run` raises what one of their tasks met."""

    def __init__(
        self,
        settings: Audio,
        ears: Ears,
        kept: Kept,
        speech: Speech,
        clock: Clock,
        folder: Path,
    ) -> None:
        """What is posted lies in `folder` until it is taken in."""
        self.folder = folder
        self._settings = settings
        self._ears = ears
        self._kept = kept
        self._speech = speech
        self._clock = clock
        self._crew = Crew()
        self._guests: dict[str, Guest] = {}
        self._places = Places(kept.takes, lambda: ears.configured, self._is_busy)
        self._parted = False
        self._phase = 0.0  # of the last stream's chunks
        self._talks: set[Talk] = set()
        self._talking: set[str] = set()  # sources that a live stream has for itself
        self._recent: deque[tuple[str, int, Segment]] = deque(maxlen=RECENT_MAX)  # with the epoch

    async def __aenter__(self) -> "Guests":
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.iterdir():  # of an agent that was killed; nobody was told it is in
            left.unlink()
        await self._places.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._crew.end()

    async def run(self) -> None:
        """Look after the streams, for ever; at the end, end them."""
        self._crew.begin(self._look())
        try:
            await self._crew.run()
        finally:
            self.part()

    def part(self) -> None:
        """The agent is ending: its streams do, and are told so; nobody waits for the hearing."""
        self._parted = True
        for guest in self._guests.values():
            guest.wake()
        for talk in self._talks:
            talk.break_off(NotNow("the agent is ending", "connect again in a few seconds"))

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for talk in list(self._talks):
                talk.look()

    async def admit(self, source: str, *, keep: bool = True) -> None:
        """Whether sound of this source may come now; makes a place for a new one.

        Raises NotNow for a name that is configured or in use by a stream, BusyError when no other
        can give its place, and StoreError.
        """
        self._check(source)
        if keep and (gone := await self._places.make(source)):
            guest = self._guests.pop(gone, None)
            if guest and guest.task:
                guest.task.cancel()
                self._ears.leave(guest.listener)

    def _check(self, source: str) -> None:
        """Raises NotNow."""
        if source in self._ears.configured:
            raise NotNow(
                f"source {source!r} is one of the configuration's", "send under another name"
            )
        if source in self._talking:
            raise NotNow(
                f"a live stream of source {source!r} is open", "end it, or use another name"
            )

    def _is_busy(self, source: str) -> bool:
        guest = self._guests.get(source)
        return source in self._talking or bool(guest and guest.posts)

    async def post(self, source: str, name: str, path: Path, digest: str) -> Take:
        """Take in a recording of this content, unless it is; its take, ended.

        Raises RequestError for what is no recording, StoreError where there is no room for it, and
        as `admit` does.
        """
        self._check(source)
        length_s = await self._length_s(path)
        await self.admit(source)
        guest = self._guest(source)
        guest.posts += 1
        try:
            async with guest.turn:
                self._check(source)
                take = await self._kept.spool.begin(source, name, POSTED + digest)
                wanted_bytes = 2 * (int(length_s * RATE_HZ) - take.samples)
                if wanted_bytes > await self._kept.room():
                    raise StoreFull(
                        f"the store has no room for {length_s:.1f} s of sound",
                        "let the link drain it, or raise store.bytes_max",
                    )
                return await self._take_in(guest, take, path)
        finally:
            guest.posts -= 1

    async def _length_s(self, path: Path) -> float:
        """Of a recording that may come in. Raises RequestError, TooLarge for one that is too long.

        It is decoded no further than to what is too much of it.
        """
        try:
            return await apart(lambda: codec.check(path, LENGTH_S_MAX, SAMPLES_MAX))
        except codec.TooLong as error:
            most = f"{LENGTH_S_MAX:g} s ({2 * RATE_HZ * LENGTH_S_MAX:.0f} bytes as it is kept)"
            raise TooLarge(
                f"the body: {_about(error, path)}; a recording may have {most}", error.hint
            ) from error
        except AudioError as error:
            raise RequestError(f"the body: {_about(error, path)}", error.hint) from error

    async def _take_in(self, guest: Guest, take: Take, path: Path) -> Take:
        """On from where it was. A take that was broken off goes on, after a gap for the hearing."""
        recorder, before = self._ears.recorder(guest.listener), take.samples
        try:
            async for block in blocks(path, BLOCK_SAMPLES, skip=take.samples):
                take = await recorder.offer(take, block)
            if not take.ended:
                take = await recorder.offer(take, np.zeros(0, np.int16), end=True)
        except StoreError as error:
            with suppress(StoreError):  # then the next start ends it
                await recorder.offer(take, np.zeros(0, np.int16), end=True)
            raise type(error)(
                f"{error}; {take.samples / RATE_HZ:.1f} s were taken in, as take {take.id}",
                f"{error.hint}; then send the same again: it goes on there",
            ) from error
        if take.samples > before:
            await self._kept.takes.forget_old(take.source)
            log.info("%s: took in %s, %.1f s", take.source, take.name, take.samples / RATE_HZ)
        return take

    async def heard(self, source: str, take: int, wait_s: float = 0.0) -> Taken:
        """How far a take is; if it is not heard to its end, after `wait_s` at the latest.

        Raises NotThere.
        """
        guest = self._guests.get(source)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while guest and wait_s > 0 and not self._parted:
                    news = guest.news
                    if not await self._kept.takes.waits(source, take):
                        break
                    await news.wait()
        found = await self._kept.takes.find(source, take)
        if found is None:
            raise NotThere(f"source {source!r} has no take {take}", self._where(source))
        waits = await self._kept.takes.waits(source, take)
        return Taken(found, found.ended and not waits, await self._segments(source, take))

    def _where(self, source: str) -> str:
        """What somebody may do who looks for a take that is not there."""
        if source in self._ears.configured:
            return (
                "it is a source of the configuration: what becomes of its sound is at "
                "/api/v1/audio/segments, and how much of it is held at /api/v1/ledger"
            )
        return "name the source and take that `holdfast audio send`, or POST /api/v1/audio, told"

    async def _segments(self, source: str, take: int) -> list[Numbered]:
        """What is held, and what was made lately."""
        held = await self._kept.shelf.of_take(source, take)
        found = {one.seq: one.segment for one in held}
        wanted = (self._kept.takes.epoch, source, take)
        found |= {
            seq: one for epoch, seq, one in self._recent if (epoch, one.source, one.take) == wanted
        }
        return sorted(found.items())

    @contextmanager
    def talk(
        self, source: str, name: str, form: tuple[int, int], answer: Answer, *, keep: bool
    ) -> Iterator[Talk]:
        """A live stream, which has its source for itself. Where it is kept, `admit` comes before.

        Raises NotNow and BusyError. `form` is its PCM's: the rate in Hz, and the channels.
        """
        self._check(source)
        if keep:
            self._places.check(source)
        if len(self._talks) >= TALKS_MAX:
            raise BusyError(f"{TALKS_MAX} streams are open", "close some", RETRY_S)
        keeping, guest = None, self._guest(source) if keep else None
        if guest and guest.posts:
            raise NotNow(f"a recording of source {source!r} comes in", "use another name")
        self._talking.add(source)
        if guest:
            keeping = self._keeping(guest, name)
        parts = (self._speech, self._settings.segments, Form(*form), answer, keeping)
        talk = Talk(source, *parts, self._crew, self._clock)
        if guest:
            guest.listener.followers.append(talk.tell_kept)
        self._talks.add(talk)
        try:
            yield talk
        finally:
            self._talks.discard(talk)
            if guest:
                guest.listener.followers.remove(talk.tell_kept)
            self._crew.begin(self._leave(source, keeping))

    async def _leave(self, source: str, keeping: Keeping | None) -> None:
        """What a stream still had for the store; then its source is free."""
        try:
            if keeping:
                await keeping.end()
        finally:
            self._talking.discard(source)

    def _keeping(self, guest: Guest, name: str) -> Keeping:
        source = guest.listener.source

        async def heard(take: int, wait_s: float) -> bool:
            return (await self.heard(source, take, wait_s)).heard

        phase = self._phase = (self._phase + GOLDEN) % 1.0
        recorder = self._ears.recorder(guest.listener)
        return Keeping(recorder, name, self._settings.chunk_s, heard, self._crew, phase)

    def _guest(self, source: str) -> Guest:
        found = self._guests.get(source)
        self._places.use(source)
        if found is None:
            listener, fresh = self._ears.host(source)
            task = self._crew.begin(listener.run()) if fresh else None
            found = self._guests[source] = Guest(listener, task)
            listener.followers.append(self._remember)
        return found

    def _remember(self, kept: Sequence[Numbered]) -> None:
        epoch = self._kept.takes.epoch
        self._recent.extend((epoch, seq, one) for seq, one in kept)


def _about(error: AudioError, path: Path) -> str:
    """What is wrong with a recording, without the name that it has here."""
    return str(error).removeprefix(f"{codec.label(path)}: ")
