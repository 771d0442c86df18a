"""The door for inference: the Open Inference Protocol's `infer`, JSON and raw tensors.

`InferenceDoors` is what aiohttp serves. The same calls come by express.py, which needs no aiohttp;
`Inference` is what both do.
"""

import asyncio
import logging
import math
from collections.abc import Collection
from typing import NamedTuple, Protocol

import msgspec
from aiohttp import web

from agent.api.entry.body import body_of
from agent.api.entry.coding import Coder, accepted, coding_of
from agent.api.entry.guard import key_of
from agent.api.entry.room import Room, Share
from agent.api.entry.visiting import abandonable
from agent.api.form.asked import bound_of
from agent.api.form.route import BYTES, Handler, Route
from agent.api.routes.handing_in import Accepted, wants_later
from agent.errors import BusyError, HoldfastError, LateError, NotThere, RequestError, TooLarge
from agent.inference import oip, oip_asked
from agent.inference.domains.work import Result
from agent.inference.scheduler import Request
from agent.inference.wire import Buffer

log = logging.getLogger("api")
VERSION_MAX, VERSION_DIGITS_MAX = 999_999_999, 20
RAW_TENSORS = (
    "As JSON, or with raw tensors behind the JSON (the protocol's binary extension), which a header"
    " gives the length of; gzip and deflate are taken, and sent to who accepts them."
)
BACK_S = 5.0  # in which an agent that ends is usually started again
JSON, RAW = "application/json", "application/octet-stream"
STATUS: list[tuple[type[HoldfastError], int]] = [  # the first that fits
    (NotThere, 404),
    (TooLarge, 413),
    (RequestError, 400),
    (BusyError, 503),
    (LateError, 504),
    (HoldfastError, 500),
]


class Scheduler(Protocol):
    """Who has the calls made; agent/inference/scheduler.py says what they raise."""

    async def infer(self, request: Request) -> Result: ...  # noqa: D102
    def start(self, request: Request) -> asyncio.Future[Result]: ...  # noqa: D102


class Reply(NamedTuple):
    """An answer, before it is HTTP; `retry_s` belongs to a 503."""

    status: int
    kind: str
    pieces: list[Buffer]
    json_bytes: int | None = None  # where raw tensors follow so much JSON
    retry_s: int | None = None
    coding: str | None = None  # how it is packed


class Call(NamedTuple):
    """A call under way."""

    id: str
    answer: asyncio.Future[Result]


class Inference:
    """From a body to a call, from its result to a reply."""

    def __init__(self, scheduler: Scheduler, room: Room | None = None) -> None:
        """`room` is for the bodies, by whatever way they come."""
        self.room = room or Room()
        self.coder = Coder()
        self._scheduler = scheduler
        self._bodies = oip.Bodies()
        self.ended = False
        self._waited: set[asyncio.Future[Result]] = set()

    def begin(self, model: str, version: str | None, json_bytes: str | None, body: Buffer) -> Call:
        """Have a call made. One that is not accepted has come to its end at once."""
        try:
            number = None if version is None else version_of(version)
            exchange = self._bodies.parsed(model, number, json_bytes, body)
            request = exchange.request
            if request.step is None:
                return Call(exchange.id, self._scheduler.start(request))
            return Call(exchange.id, asyncio.ensure_future(self._scheduler.infer(request)))
        except HoldfastError as error:
            return Call("", _failed(error))
        except Exception:  # the border: what one request meets must not end the connection
            log.exception("a request to model %s failed", model)
            return Call("", _failed(_fault()))

    async def wait(self, calls: Collection[Call], timeout_s: float | None = None) -> None:
        """Until all have come to their end, for so long at most; then nobody waits for them."""
        waited = {one.answer for one in calls}
        self._waited |= waited
        try:
            if waited:
                await asyncio.wait(waited, timeout=timeout_s)
        finally:
            self._waited -= waited
            for one in waited:
                one.cancel()

    def end(self) -> None:
        """The agent is ending: what is waited for is answered so."""
        self.ended = True
        for one in self._waited:
            one.cancel()

    def reply(self, call: Call) -> Reply:
        """To a call that has come to its end."""
        try:
            result = call.answer.result()
            json_bytes, pieces = self._bodies.answer(call.id, result)
        except HoldfastError as error:
            return refused(error)
        except Exception:  # the border, as above
            log.exception("a call failed")
            return refused(_fault())
        return Reply(200, JSON if json_bytes is None else RAW, pieces, json_bytes)

    def packing(self, reply: Reply, coding: str) -> asyncio.Future[Reply] | None:
        """The same reply in the making, packed if that pays; None: it surely does not."""
        packing = self.coder.packing(reply.pieces, coding)
        return asyncio.ensure_future(_packed(reply, coding, packing)) if packing else None


async def _packed(reply: Reply, coding: str, packing: asyncio.Future[bytes]) -> Reply:
    body = await packing
    return reply._replace(pieces=[body], coding=coding) if body else reply


def _failed(error: HoldfastError) -> asyncio.Future[Result]:
    answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    answer.set_exception(error)
    return answer


def _fault() -> HoldfastError:
    return HoldfastError(
        "the agent met a fault of its own", "look at its log, and report what it says"
    )


def ending() -> BusyError:
    """To who cannot be answered any more."""
    return BusyError("the agent is ending", "ask again when it is back", BACK_S)


def refused(error: HoldfastError) -> Reply:
    """The reply to a call that failed, or was not accepted."""
    status = next(code for kind, code in STATUS if isinstance(error, kind))
    body = msgspec.json.encode({"error": str(error), "hint": error.hint})
    retry_s = max(1, math.ceil(error.retry_s)) if isinstance(error, BusyError) else None
    return Reply(status, JSON, [body], retry_s=retry_s)


class InferenceDoors:
    """The routes."""

    def __init__(self, inference: Inference, later: Handler | None = None) -> None:
        """`later` takes in what is not to be waited for; where there is none, it is."""
        self._inference = inference
        self._later = later

    def routes(self) -> list[Route]:
        """What is served."""

        one = Route(
            *("POST", "/v2/models/{model}/infer", self._infer, ("infer",), "Ask a model."),
            {200: (oip.Answered, BYTES)},
            body=(oip_asked.Asked, BYTES),
            refuses=(500, 503, 504),
            takes=(oip_asked.HEADER,),
            tells={200: (oip_asked.HEADER,)},
            unpacks=True,
            about=RAW_TENSORS,
        )
        version = "/v2/models/{model}/versions/{version}/infer"
        return [
            self._not_waited_for(one) if self._later else one,
            one._replace(path=version, summary="Ask a version of a model."),
        ]

    def _not_waited_for(self, one: Route) -> Route:
        """The same door, which also makes a job of a request."""
        return one._replace(
            answers={**one.answers, 202: Accepted},
            refuses=(*one.refuses, 409, 507),
            takes=(*one.takes, "Prefer"),
            tells={**one.tells, 202: ("Location", "Preference-Applied")},
            about=f"{one.about} With `Prefer: respond-async` it becomes a job.",
        )

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        if self._later and wants_later(request):
            return await self._later(request)
        share = Share(self._inference.room, key_of(request))
        try:
            with abandonable(request):
                return _response(await self._reply(request, share))
        except BusyError as error:
            return _response(refused(error))
        finally:
            share.leave()

    async def _reply(self, request: web.Request, share: Share) -> Reply:
        """Raises RequestError, BusyError for a body that is not taken in."""
        named, length = request.match_info, request.headers.get(oip_asked.HEADER)
        body = await body_of(request, bound_of(request), share)
        if coding := coding_of(request.headers.get("Content-Encoding")):
            most = oip.BODY_BYTES_MAX if length else oip_asked.JSON_BYTES_MAX
            body = await self._inference.coder.unpacked(body, coding, share, most)
        call = self._inference.begin(named["model"], named.get("version"), length, body)
        await self._inference.wait([call])
        if call.answer.cancelled():
            raise ending()
        reply = self._inference.reply(call)
        wanted = accepted(request.headers.get("Accept-Encoding"))
        packing = self._inference.packing(reply, wanted) if wanted else None
        return await packing if packing else reply


def _response(reply: Reply) -> web.Response:
    headers = {}
    if reply.json_bytes is not None:
        headers[oip_asked.HEADER] = str(reply.json_bytes)
    if reply.retry_s is not None:
        headers["Retry-After"] = str(reply.retry_s)
    if reply.coding is not None:
        headers["Content-Encoding"] = reply.coding
    body = reply.pieces[0] if len(reply.pieces) == 1 else b"".join(reply.pieces)
    return web.Response(status=reply.status, body=body, headers=headers, content_type=reply.kind)


def version_of(text: str) -> int:
    """A version as a path or a parameter has it. Raises RequestError."""
    digits = text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX
    if not digits or int(text) > VERSION_MAX:
        raise RequestError(f"version {text!r} is no whole number", "see holdfast models ls")
    return int(text)
