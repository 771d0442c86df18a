"""Bodies that travel compressed, as gzip or deflate.

What comes is unpacked in pieces, and takes its room as it grows: of a body that turns out too long
no more is made than its bound. What goes is packed where that pays. Either is a matter of
milliseconds where a body is large, and done in a thread then.

Limits: STEP_BYTES are unpacked between two looks; THREADS work at once, what is more waits; an
        answer below PACK_BYTES_MIN is not packed, nor one whose middle does not get smaller.
"""

import asyncio
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent.api.entry.room import Share
from agent.errors import RequestError, TooLarge
from agent.inference.wire import Buffer

WINDOW = {"gzip": 31, "deflate": 15}  # zlib's word for the form; deflate is zlib's own, RFC 9110
KNOWN = ", ".join(WINDOW)
THREADS = 2
STEP_BYTES = 4 << 20
INLINE_BYTES = 16 << 10  # in and out: some ten microseconds
PACK_BYTES_MIN = 16 << 10  # a smaller answer is a few packets, and its caller waits for it
SAMPLE_BYTES = 8 << 10
PAYS = 0.9  # of its size; random numbers stay near it, and cost their packing all the same
LEVEL = 1
# Spaces stand in one place of it alone: in two that meet, a long run of them would take minutes.
ACCEPTED = re.compile(r"([A-Za-z0-9*-]+)(?:\s*;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?))?")


def coding_of(header: str | None) -> str | None:
    """The `Content-Encoding` of a request, in lower case; None: it is as it is."""
    coding = (header or "").strip().lower()
    return None if coding in ("", "identity") else coding


def accepted(header: str | None) -> str | None:
    """What `Accept-Encoding` asks for, of what there is; None: leave it as it is."""
    weights: dict[str, float] = {}
    for one in (header or "").split(","):
        if match := ACCEPTED.fullmatch(one.strip()):
            weights[match[1].lower()] = float(match[2] or 1)
    known = {one: weights.get(one, weights.get("*", 0.0)) for one in WINDOW}
    best = max(known, key=lambda one: known[one])
    return best if known[best] else None


class Coder:
    """Packs and unpacks."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "coder")

    async def unpacked(self, body: Buffer, coding: str, share: Share, bytes_max: int) -> Buffer:
        """What was packed; `share` has room for `body` already.

        Raises RequestError for what is not packed so, TooLarge, BusyError where there is no room.
        """
        stream = zlib.decompressobj(WINDOW[coding])
        whole, rest, step = bytearray(), body, INLINE_BYTES
        while not stream.eof:
            most = min(step, bytes_max - len(whole) + 1)
            try:
                if len(rest) <= INLINE_BYTES and most <= INLINE_BYTES:
                    piece = stream.decompress(rest, most)
                else:
                    loop = asyncio.get_running_loop()
                    piece = await loop.run_in_executor(self._threads, stream.decompress, rest, most)
            except zlib.error as error:
                raise _wrong(coding, f"{error}") from error
            rest, step = stream.unconsumed_tail, STEP_BYTES
            if not piece and not rest and not stream.eof:
                raise _wrong(coding, "it ends too early")
            if len(whole) + len(piece) > bytes_max:
                raise TooLarge(
                    f"a body is above {bytes_max} bytes when it is unpacked", "send less at once"
                )
            share.insist(len(body) + len(whole) + len(piece))
            whole += piece
        if stream.unused_data:
            raise _wrong(coding, f"{len(stream.unused_data)} bytes follow its end")
        return whole

    def packing(self, pieces: Sequence[Buffer], coding: str) -> "asyncio.Future[bytes] | None":
        """A body in the making, packed, or empty if that does not pay; None: it surely does not."""
        if sum(map(len, pieces)) < PACK_BYTES_MIN:
            return None
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, _packed, pieces, coding)


def _packed(pieces: Sequence[Buffer], coding: str) -> bytes:
    whole = b"".join(pieces)
    middle = len(whole) // 2
    sample = whole[middle : middle + SAMPLE_BYTES]
    if len(zlib.compress(sample, LEVEL)) > PAYS * len(sample):
        return b""
    return zlib.compress(whole, LEVEL, WINDOW[coding])


def _wrong(coding: str, what: str) -> RequestError:
    return RequestError(
        f"the body is not whole, or no {coding}, which its Content-Encoding says: {what}",
        "send it whole, and encoded as its header says",
    )
