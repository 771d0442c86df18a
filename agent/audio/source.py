"""What all sources of sound have in common.

A source never stops because of what it is given: what cannot be read is refused with its name, the
reason and what to do, and the source goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from agent.audio import codec
from agent.errors import AudioError
from agent.health.conditions import Conditions
from agent.threads import apart

T = TypeVar("T")
REST_S = 5.0  # between two looks at something that cannot be read
SILENT_S = 15.0  # a disk that has not answered by then is told of, and still waited for


class Source(Protocol):
    """Anything that hears; `run` ends only when there is no more to come."""

    name: str

    async def run(self) -> None:
        """Hear, for ever or to the end."""
        ...


class Disk:
    """What a source is read from. A disk may hang: a thread waits for it, never the loop, and one
    alone, for the source asks for one thing after the other.
    """

    def __init__(self, source: str, conditions: Conditions) -> None:
        self._source = source
        self._conditions = conditions

    async def ask(self, path: Path, call: Callable[[], T]) -> T:
        """What `call` returns or raises; if that takes long, a condition says so meanwhile.

        Whoever asks clears it with what he finds at last.
        """
        answer = asyncio.ensure_future(apart(call))
        try:
            done, _ = await asyncio.wait([answer], timeout=SILENT_S)
            if not done:
                cause = f"{codec.label(path)}: its disk has not answered for {SILENT_S:.0f} s"
                remedy = "check the disk, or the server that it is of; it is waited for"
                self._conditions.hold("source_unreadable", self._source, "warning", cause, remedy)
            return await answer
        finally:
            answer.cancel()

    async def blocks(self, path: Path, samples: int, skip: int = 0) -> AsyncIterator[codec.Pcm]:
        """As `blocks` below."""
        decoded: Iterator[codec.Pcm] = codec.decode(path, samples, skip)
        while (block := await self.ask(path, lambda: next(decoded, None))) is not None:
            yield block


async def blocks(path: Path, samples: int, skip: int = 0) -> AsyncIterator[codec.Pcm]:
    """`codec.decode` in threads, one block ahead of nobody."""
    decoded: Iterator[codec.Pcm] = codec.decode(path, samples, skip)
    while (block := await apart(lambda: next(decoded, None))) is not None:
        yield block


def hold_unreadable(conditions: Conditions, source: str, error: AudioError | OSError) -> None:
    """The condition of a source that cannot be read now."""
    if isinstance(error, AudioError):
        cause, remedy = str(error), error.hint
    else:
        cause = f"{error.filename or source}: {error.strerror}"
        remedy = "check that it is there and that this user may read and write it"
    conditions.hold("source_unreadable", source, "warning", cause, remedy)
