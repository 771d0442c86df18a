"""A recording's body: to a file on the store's disk as it comes, never whole in memory.

Limits: BODY_BYTES_MAX; it comes within BODY_S, at the pace of all bodies (entry/pace.py), and
leaves the store DISK_FREE_BYTES_MIN.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, NamedTuple

from aiohttp import web

from agent.api.entry.body import Bound, Incoming, incoming
from agent.errors import RequestError, StoreFull
from agent.host.disk import disk

BODY_BYTES_MAX = 256 << 20
BODY_S = 600.0
BOUND = Bound(BODY_BYTES_MAX, "send it in several parts", BODY_S)
WRITE_BYTES = 1 << 20
DISK_FREE_BYTES_MIN = 64 << 20
KNOWN = "WAV, FLAC, Ogg Opus, Ogg Vorbis, AIFF or MP3"
BEGINNINGS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3")


class Body(NamedTuple):
    """A body that lies in a file, and the SHA-256 of its content."""

    path: Path
    digest: str


@asynccontextmanager
async def received(request: web.Request, folder: Path) -> AsyncIterator[Body]:
    """The body in a file, which is removed at the end.

    Raises RequestError for what cannot be sound, or is too large or too slow; StoreFull where the
    disk has no room.
    """
    _check_kind(request)
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix="body-")  # noqa: SIM115
    except OSError as error:
        raise _unwritten(error) from error
    try:
        with incoming(request, BOUND) as coming:
            digest = await _written(coming, file)
        yield Body(Path(file.name), digest)
    finally:
        await asyncio.to_thread(file.close)


async def _written(coming: Incoming, file: IO[bytes]) -> str:
    digest, size = hashlib.sha256(), 0
    held = bytearray()
    more = True
    while more:
        step = await coming.piece()
        more = bool(step)
        held += step
        size += len(step)
        if len(held) >= WRITE_BYTES or not more:
            if size == len(held):
                _check_beginning(bytes(held[:4]))
            await asyncio.to_thread(_write, file, bytes(held), digest)
            held.clear()
    return digest.hexdigest()


def _write(file: IO[bytes], content: bytes, digest: "hashlib._Hash") -> None:
    try:
        if disk(Path(file.name).parent).free_bytes < DISK_FREE_BYTES_MIN + len(content):
            raise StoreFull("the disk has no room for the body", "make room, and send it again")
        file.write(content)
        file.flush()
    except OSError as error:
        raise _unwritten(error) from error
    digest.update(content)


def _unwritten(error: OSError) -> StoreFull:
    return StoreFull(f"the body could not be written: {error.strerror}", "look at the disk")


def _check_kind(request: web.Request) -> None:
    """A form has the file within it, between lines of its own. Raises RequestError."""
    if request.content_type.startswith("multipart/"):
        raise RequestError(
            f"the body is {request.content_type}, which has the recording within it",
            "send the file itself: curl --data-binary @file.wav URL (and not -F)",
        )


def _check_beginning(content: bytes) -> None:
    """What no recording begins with is not even written. Raises RequestError."""
    mpeg = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0
    if not content.startswith(BEGINNINGS) and not mpeg:
        begins = f"begins with {content!r}" if content else "is empty"
        raise RequestError(f"the body {begins}", f"send {KNOWN}")
