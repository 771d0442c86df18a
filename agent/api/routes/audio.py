"""The doors of sound: bring a recording, see what became of it, listen to what was heard.

What format a recording has, its content says.

Limits: BODIES_MAX come in at once, never all of one caller (room.py); those of audio_body.py and
audio/guests.py.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Protocol

from aiohttp import web
from msgspec import Meta, Struct

from agent.api.entry.guard import key_of
from agent.api.entry.refusals import refusal
from agent.api.entry.room import Places
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Media, Route, get
from agent.api.routes.audio_body import received
from agent.api.routes.handing_in import wants_later
from agent.errors import NotThere, RequestError, StoreError, StoreFull
from agent.forms import Name
from agent.records import RATE_HZ, Segment, Take
from agent.store.shelf import PIECE_BYTES, Shelf, Standing
from agent.store.streams import SEQ_MAX
from agent.words import printable

log = logging.getLogger("api")
AUDIO = "/api/v1/audio"
BODIES_MAX = 4
RETRY_S = 10.0
WAIT_S_MAX = 300.0
COUNT_MAX = 200
SEQ_DIGITS_MAX = 20
FLAC = "audio/flac"
LAST_NONE = re.compile(r"bytes=-0+", re.IGNORECASE)
KINDS = tuple(
    map(Media, ("audio/wav", FLAC, "audio/ogg", "audio/mpeg", "application/octet-stream"))
)
ABOUT = (
    "WAV, FLAC, Ogg Opus, Ogg Vorbis, AIFF or MP3, as its content says. 202: it is not heard to its"
    " end yet. To look at `Location` takes `read`, for there are the takes of all sources; without"
    " it, send the same again: it is answered with the same take, and not taken in twice."
)
NameOfTake = Annotated[str, Meta(min_length=1, max_length=200)]


class PostQuery(Struct, frozen=True):
    """Which source a recording is of, and its name (none: from its digest); whether to wait until
    it is heard, and for how long."""

    source: Name = "api"
    name: NameOfTake | None = None
    wait: bool = True
    wait_s: Annotated[float, Meta(gt=0, le=WAIT_S_MAX)] = 30.0


class SegmentsQuery(Struct, frozen=True):
    """How many."""

    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 20


class Heard(Struct, frozen=True):
    """A segment: denoised speech from `start_s` of its take on.

    `speech` is its mean speech probability, `heard_us` the wall label of its first sound; `sha256`
    and `size_bytes` are of its FLAC, at /api/v1/audio/segments/{stream}/{seq} while it is held.
    """

    id: str
    stream: str
    seq: int
    source: str
    take: int
    name: str
    start_s: float
    length_s: float
    speech: float
    heard_us: int
    model: str
    ep: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, stream: str, seq: int, one: Segment) -> "Heard":
        """A record of a stream of segments."""
        return cls(
            *(one.id, stream, seq, one.source, one.take, one.name),
            *(one.start / RATE_HZ, one.samples / RATE_HZ, one.speech, one.heard_us),
            *(one.model, one.ep, one.sha256, one.size_bytes),
        )


class Recent(Struct, frozen=True):
    """The newest segments that are held; what the far side has is purged."""

    segments: list[Heard]


class TakeState(Struct, frozen=True):
    """A take, as far as it is: coming in, in the store and being heard, or heard to its end.

    `segments` are those that are held, and those made lately: what the far side has is purged.
    """

    take: int
    source: str
    name: str
    status: Literal["coming", "hearing", "heard"]
    samples: int
    length_s: float
    segments: list[Heard]


class Taken(Protocol):
    """What audio/guests.py says of a take."""

    @property
    def take(self) -> Take: ...  # noqa: D102
    @property
    def heard(self) -> bool: ...  # noqa: D102
    @property
    def segments(self) -> Sequence[tuple[int, Segment]]: ...  # noqa: D102


class Guests(Protocol):
    """Who takes recordings in; audio/guests.py says what each means and raises."""

    folder: Path

    async def admit(self, source: str) -> None: ...  # noqa: D102
    async def post(self, source: str, name: str, path: Path, digest: str) -> Take: ...  # noqa: D102
    async def heard(self, source: str, take: int, wait_s: float = 0.0) -> Taken: ...  # noqa: D102


class AudioDoors:
    """The routes."""

    def __init__(self, guests: Guests, shelf: Shelf) -> None:
        self._guests = guests
        self._shelf = shelf
        self._places = Places(BODIES_MAX, "recordings")

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route(
                *("POST", AUDIO, self._post, ("infer",), "Have a recording heard."),
                {200: TakeState, 202: TakeState},
                PostQuery,
                KINDS,
                refuses=(409, 503, 507),
                takes=("Prefer",),
                tells={202: ("Location",)},
                about=ABOUT,
            ),
            get(
                f"{AUDIO}/takes/{{source}}/{{take}}",
                self._take,
                "How far a take is, and its segments.",
                TakeState,
            ),
            get(
                f"{AUDIO}/segments",
                self._newest,
                "The newest segments that are held.",
                Recent,
                query=SegmentsQuery,
            ),
            Route(
                *("GET", f"{AUDIO}/segments/{{stream}}/{{seq}}", self._listen, ("read",)),
                "The sound of a segment, while it is held.",
                {200: Media(FLAC), 206: Media(FLAC), 304: None},
                refuses=(416, 503),
                takes=("Range", "If-Range", "If-None-Match"),
                tells={200: ("ETag",), 206: ("ETag", "Content-Range"), 304: ("ETag",)},
            ),
        ]

    async def _post(self, request: web.Request) -> web.Response:
        """200 once it is heard, 202 before that."""
        query = query_of(request, PostQuery)
        wait = query.wait and not wants_later(request)
        try:
            await self._guests.admit(query.source)
            take = await self._take_in(request, query)
            found = await self._guests.heard(query.source, take.id, query.wait_s if wait else 0.0)
        except StoreError as error:
            status = 507 if isinstance(error, StoreFull) else 503
            return refusal(status, str(error), error.hint, RETRY_S)
        answer = document(_state(found), 200 if found.heard else 202)
        if not found.heard:
            answer.headers["Location"] = f"{AUDIO}/takes/{query.source}/{take.id}"
        return answer

    async def _take_in(self, request: web.Request, query: PostQuery) -> Take:
        """Raises BusyError where too many come in, and as `received` and the guests."""
        with self._places.place(key_of(request), RETRY_S):
            async with received(request, self._guests.folder) as body:
                name = printable(query.name) if query.name else body.digest[:16]
                return await self._guests.post(query.source, name, body.path, body.digest)

    async def _take(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        source, take = request.match_info["source"], _number(request, "take")
        return document(_state(await self._guests.heard(source, take)))

    async def _newest(self, request: web.Request) -> web.Response:
        count = query_of(request, SegmentsQuery).count
        found = await self._shelf.newest(count)
        return document(Recent([Heard.of(one.stream, one.seq, one.segment) for one in found]))

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        query_of(request, NoQuery)
        found = await self._shelf.find(request.match_info["stream"], _number(request, "seq"))
        size, tag = found.segment.size_bytes, f'"{found.segment.sha256}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
        if tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        span = _span(request, size, tag)
        if span is None:
            refused = refusal(416, f"no such range in {size} bytes", "ask for what is there")
            refused.headers["Content-Range"] = f"bytes */{size}"
            return refused
        start, stop, partial = span
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        answer = web.StreamResponse(status=206 if partial else 200, headers=headers)
        answer.content_type, answer.content_length = FLAC, stop - start
        return await self._send(request, answer, found, (start, stop))

    async def _send(
        self,
        request: web.Request,
        answer: web.StreamResponse,
        found: Standing,
        span: tuple[int, int],
    ) -> web.StreamResponse:
        """Piece by piece; one that is purged meanwhile ends without its end."""
        start, stop = span
        if request.method == "HEAD":
            await answer.prepare(request)
            return answer
        piece = await self._shelf.sound(found, start, min(PIECE_BYTES, stop - start))
        await answer.prepare(request)
        with suppress(ConnectionError):  # whoever asked is gone
            try:
                while True:
                    await answer.write(piece)
                    start += len(piece)
                    if start >= stop:
                        break
                    piece = await self._shelf.sound(found, start, min(PIECE_BYTES, stop - start))
                await answer.write_eof()
            except (NotThere, StoreError) as error:
                log.warning("%s was broken off: %s", request.path, error)
                if request.transport:
                    request.transport.abort()
        return answer


def _state(found: Taken) -> TakeState:
    take = found.take
    status: Literal["coming", "hearing", "heard"] = "hearing" if take.ended else "coming"
    stream = f"{take.source}.segments"
    return TakeState(
        *(take.id, take.source, take.name, "heard" if found.heard else status),
        *(take.samples, take.samples / RATE_HZ),
        [Heard.of(stream, seq, one) for seq, one in found.segments],
    )


def _span(request: web.Request, size: int, tag: str) -> tuple[int, int, bool] | None:
    """The bytes that are asked for, from and up to, and whether not all; None: there are none."""
    if request.headers.get("If-Range", tag) != tag:
        return 0, size, False
    if LAST_NONE.fullmatch(request.headers.get("Range", "")):  # aiohttp takes it for all of them
        return None
    try:
        asked = request.http_range
    except ValueError:
        return None
    if asked.start is None and asked.stop is None:
        return 0, size, False
    start, stop, _ = asked.indices(size)
    return (start, stop, True) if start < stop else None


def _number(request: web.Request, place: str) -> int:
    text = request.match_info[place]
    digits = text.isascii() and text.isdecimal() and len(text) < SEQ_DIGITS_MAX
    if not digits or not 1 <= int(text) <= SEQ_MAX:
        raise RequestError(
            f"the {place} in the path: expected a whole number from 1 to {SEQ_MAX}, found {text!r}",
            "give such a number",
        )
    return int(text)
