"""The door of live sound: a WebSocket that takes PCM, and gives it back denoised.

In: binary messages, whole frames of 16-bit little-endian PCM; the text `{"event": "end"}` when
there is no more, or a close, after which nobody listens. Out: binary messages, as many samples as
came at 16 kHz, mono; and events as JSON texts (talk_events.py).

Limits: MESSAGE_BYTES_MAX of a message; a client that is silent answers pings within HEARTBEAT_S.
The last places of a door (entry/doors.py) are not for streams.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager, suppress
from typing import Annotated, Any, Literal, Protocol

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Meta, Struct

from agent.api.entry.refusals import refusal
from agent.api.entry.visiting import may_stay
from agent.api.form.asked import query_of
from agent.api.form.route import Route
from agent.errors import BusyError, HoldfastError, NotNow, RequestError
from agent.forms import Name
from agent.records import RATE_HZ
from agent.talk_events import End, Ready, SegmentKept, SpeechBegin, SpeechEnd, Trouble
from agent.words import printable

log = logging.getLogger("api")
STREAM = "/api/v1/audio/stream"
MESSAGE_BYTES_MAX = 256 << 10  # eight seconds of the usual form
HEARTBEAT_S = 20.0
RETRY_S = 10.0
GRACE_S = 5.0  # for the last words to one who may not read them
CODES = (
    (NotNow, WSCloseCode.GOING_AWAY),
    (RequestError, WSCloseCode.POLICY_VIOLATION),
    (HoldfastError, WSCloseCode.INTERNAL_ERROR),
)
Told = Ready | SpeechBegin | SpeechEnd | SegmentKept | End | Trouble
ABOUT = (
    "In go binary messages of whole frames of 16-bit little-endian PCM, and at the end the text"
    ' `{"event": "end"}`. Out come binary messages of denoised PCM at 16 kHz, mono, and events as'
    " JSON texts. Without the headers of a WebSocket the answer is 400."
)
REASON_BYTES_MAX = 120  # of a close; RFC 6455, 5.5


class StreamQuery(Struct, frozen=True):
    """Which source it is, and the name of its take; whether it is kept; what PCM comes."""

    source: Name = "stream"
    name: Annotated[str, Meta(min_length=1, max_length=200)] = "live"
    keep: bool = True
    rate_hz: Annotated[int, Meta(ge=8000, le=192_000)] = RATE_HZ
    channels: Annotated[int, Meta(ge=1, le=8)] = 1


class Order(Struct, frozen=True):
    """A text message."""

    event: Literal["end"]


class Talk(Protocol):
    """A stream; audio/talk.py says what each means and raises."""

    fault: HoldfastError | None

    def begin(self) -> "asyncio.Task[None]": ...  # noqa: D102
    async def give(self, content: bytes) -> None: ...  # noqa: D102
    async def end(self) -> None: ...  # noqa: D102


class Host(Protocol):
    """Who opens streams; audio/guests.py."""

    async def admit(self, source: str, *, keep: bool) -> None: ...  # noqa: D102
    def talk(  # noqa: D102
        self, source: str, name: str, form: tuple[int, int], answer: "Answers", *, keep: bool
    ) -> AbstractContextManager[Talk]: ...


class Answers:
    """The way back to a client."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._since_s: float | None = None

    @property
    def blocked_s(self) -> float:
        """For how long he has not taken what he is given."""
        return 0.0 if self._since_s is None else time.monotonic() - self._since_s

    async def sound(self, pcm: bytes) -> None:
        """The next denoised samples."""
        await self._sent(self._socket.send_bytes(pcm))

    async def tell(self, event: Struct) -> None:
        """An event."""
        await self._sent(self._socket.send_str(msgspec.json.encode(event).decode()))

    async def _sent(self, sending: Awaitable[None]) -> None:
        began_s = time.monotonic()
        self._since_s = self._since_s or began_s
        try:
            await sending
        finally:
            self._since_s = None


class AudioStream:
    """The route."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route(
                *("GET", STREAM, self._stream, ("infer",)),
                "A WebSocket: PCM in; denoised PCM and events out.",
                {101: Told},
                StreamQuery,
                refuses=(409, 503),
                about=ABOUT,
            )
        ]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        query = query_of(request, StreamQuery)
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MESSAGE_BYTES_MAX
        )
        if request.method != "GET" or not socket.can_prepare(request).ok:
            raise RequestError(f"{STREAM} is a WebSocket", "connect with a WebSocket client")
        answers, form = Answers(socket), (query.rate_hz, query.channels)
        name = printable(query.name)
        try:
            if not may_stay(request):
                raise BusyError("the last connections are kept for others", "close some", RETRY_S)
            await self._host.admit(query.source, keep=query.keep)
            with self._host.talk(query.source, name, form, answers, keep=query.keep) as talk:
                await socket.prepare(request)
                await self._served(request, socket, talk, query.source)
        except BusyError as error:
            return refusal(503, str(error), error.hint, error.retry_s)
        return socket

    async def _served(
        self, request: web.Request, socket: web.WebSocketResponse, talk: Talk, source: str
    ) -> None:
        """Until both sides are done, or one has gone."""
        hearing, coming = talk.begin(), asyncio.create_task(_coming(socket, talk))
        fault: Any = None
        try:
            await asyncio.wait({hearing, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done() and coming.result():  # the end was announced: all of it is answered
                await asyncio.wait({hearing})
            if hearing.done() and not hearing.cancelled():
                hearing.result()
            fault = talk.fault
        except ConnectionError:
            log.debug("the live stream of %s: the client has gone", source)
        except HoldfastError as error:
            fault = error
        finally:
            for task in (hearing, coming):
                task.cancel()
            await asyncio.wait({hearing, coming})
        await _farewell(request, socket, source, fault)


async def _coming(socket: web.WebSocketResponse, talk: Talk) -> bool:
    """What the client sends; True: it said that there is no more. Raises RequestError."""
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            await talk.give(message.data)
        elif message.type is WSMsgType.TEXT:
            try:
                msgspec.json.decode(message.data, type=Order)
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
                raise RequestError(f"a text message: {error}", 'send {"event": "end"}') from error
            await talk.end()
            return True
        else:
            break  # what came is no WebSocket's, or too long; it is closed already
    return False


async def _farewell(
    request: web.Request, socket: web.WebSocketResponse, source: str, fault: HoldfastError | None
) -> None:
    """The last words, and why; not for longer than it takes one who listens."""
    code, said = WSCloseCode.OK, b""
    try:
        async with asyncio.timeout(GRACE_S):
            if fault:
                code = next(code for kind, code in CODES if isinstance(fault, kind))
                said = str(fault).encode()[:REASON_BYTES_MAX]
                level = logging.INFO if isinstance(fault, NotNow) else logging.WARNING
                log.log(level, "the live stream of %s: let go: %s", source, fault)
                with suppress(ConnectionError):
                    words = msgspec.json.encode(Trouble(str(fault), fault.hint))
                    await socket.send_str(words.decode())
            await socket.close(code=code, message=said)
    except TimeoutError:
        if request.transport:
            request.transport.abort()
