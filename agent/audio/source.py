"""What all sources of sound have in common.

A source never stops because of what it is given: what cannot be read is refused with its name, the
reason and what to do, and the source goes on.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

from agent.audio import codec
from agent.errors import AudioError
from agent.health.conditions import Conditions
from agent.threads import apart

REST_S = 5.0  # between two looks at something that cannot be read


class Source(Protocol):
    """Anything that hears; `run` ends only when there is no more to come."""

    name: str

    async def run(self) -> None:
        """Hear, for ever or to the end."""
        ...


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
