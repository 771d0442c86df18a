"""A live stream's way into the store, in chunks.

Limits: QUEUE_CHUNKS wait for the store; then whoever brings sound has to wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np

from agent.audio.recorder import Recorder
from agent.records import RATE_HZ
from agent.tasks import Crew

QUEUE_CHUNKS = 8
HEARD_S_MAX = 10.0  # that the end waits for the last segments
SAMPLE_BYTES = 2


class Keeping:
    """One stream's way. `take` is the number of the last take that has its sound."""

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        chunk_s: float,
        heard: Callable[[int, float], Awaitable[bool]],
        crew: Crew,
        phase: float,
    ) -> None:
        """`heard` waits until a take is heard, so long at most; whether it is.

        `phase` (0 to 1) is the part of a chunk that the first one has: of streams that begin
        together the chunks must not all come at once.
        """
        self.take: int | None = None
        self._recorder = recorder
        self._name = name
        self._heard = heard
        self._chunk_bytes = int(chunk_s * RATE_HZ) * SAMPLE_BYTES
        self._first_bytes = int(phase * chunk_s * RATE_HZ) * SAMPLE_BYTES  # of the first chunk
        self._chunk = bytearray()  # the next one, as far as it is there
        self._waiting: deque[bytes] = deque()
        self._some = asyncio.Event()  # or it has ended
        self._room = asyncio.Event()
        self._ended = False
        self._task = crew.begin(self._keep())

    async def give(self, pcm: bytes) -> None:
        """The next samples; waits while the store is behind."""
        self._chunk += pcm
        while len(self._chunk) >= (size := self._first_bytes or self._chunk_bytes):
            self._put(size)
            self._first_bytes = 0
        while len(self._waiting) > QUEUE_CHUNKS:
            self._room.clear()
            await self._room.wait()

    def flush(self) -> None:
        """No sound waits for the rest of its chunk, where none comes before it."""
        if not self._waiting:
            self._put(self._chunk_bytes)

    async def end(self) -> None:
        """Have all of it kept, and end its take."""
        self._put(self._chunk_bytes)
        self._ended = True
        self._some.set()
        await asyncio.wait([self._task])

    async def heard(self) -> bool:
        """Whether all that was kept is segments by now, or soon."""
        return self.take is None or await self._heard(self.take, HEARD_S_MAX)

    def _put(self, size: int) -> None:
        if self._chunk:
            self._waiting.append(bytes(self._chunk[:size]))
            del self._chunk[:size]
            self._some.set()

    async def _keep(self) -> None:
        while await self._some.wait():
            while self._waiting:
                pcm = np.frombuffer(self._waiting.popleft(), "<i2")
                await self._recorder.accept_live(self._name, pcm)
                self.take = self._recorder.live.id if self._recorder.live else self.take
                self._room.set()
            if self._ended:
                break
            self._some.clear()
        await self._recorder.end_live()
