"""The doors of the air gap: an export part by part, and the ack bundle that comes back.

They answer on the unix socket alone, but for what an export's state and the device's key are.
"""

import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from agent.errors import BundleError, HoldfastError, RequestError
from agent.protocol.bundle import ACK_BUNDLE_BYTES_MAX, PART_BYTES_MAX, PART_BYTES_MIN
from agent.protocol.signing import Key

log = logging.getLogger("bundle")
PART_DIGITS_MAX = 9


class ExportOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of the beginning of an export: how large a part may be."""

    part_bytes: Annotated[int, Meta(ge=PART_BYTES_MIN, le=PART_BYTES_MAX)] = 1 << 30


class Export(Protocol):
    """An export that has begun."""

    id: str
    failure: str | None

    def state(self) -> dict[str, Any]:
        """How far it is."""

    def keep(self, number: int) -> None:
        """A part is safe where it was taken to."""

    def part(self, number: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a part."""


class Bundles(Protocol):
    """The device's side of the air gap, as sync/bundle.py has it."""

    async def key(self) -> Key:
        """The device's key."""

    async def begin(self, part_bytes: int) -> Export:
        """A new export."""

    def export(self, named: str | None = None) -> Export:
        """The last one."""

    async def take(self, content: bytes) -> dict[str, Any]:
        """Take an ack bundle."""


class BundleDoors:
    """The routes."""

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        return [
            web.get("/api/v1/bundle/key", self._key),
            web.get("/api/v1/bundle/export", self._state),
            web.post("/api/v1/bundle/export", self._begin),
            web.post("/api/v1/bundle/export/{export}/{part}", self._part),
            web.post("/api/v1/bundle/export/{export}/{part}/kept", self._keep),
            web.post("/api/v1/bundle/ack", self._ack),
        ]

    async def _key(self, _: web.Request) -> web.Response:
        return _json({"key": (await self._bundles.key()).public})

    async def _state(self, _: web.Request) -> web.Response:
        return _json(self._bundles.export().state())

    async def _begin(self, request: web.Request) -> web.Response:
        try:
            order = msgspec.json.decode(await request.read() or b"{}", type=ExportOrder)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            form = '{"part_bytes": 1073741824}'
            raise RequestError(f"the body of {request.path}: {error}", f"send {form}") from error
        return _json((await self._bundles.begin(order.part_bytes)).state(), 201)

    async def _part(self, request: web.Request) -> web.StreamResponse:
        """A part as it is made. One that fails ends without the end of its answer."""
        export, number = self._named(request)
        part = export.part(number)
        first = await anext(part)  # what is refused is refused before the answer begins
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        try:
            await answer.write(first)
            async for made in part:
                await answer.write(made)
            await answer.write_eof()
        except HoldfastError as error:
            _break_off(request, export, str(error))
        except ConnectionError:  # whoever asked is gone: nothing was changed
            log.info("export %s: part %d was not taken to its end", export.id, number)
        finally:
            await part.aclose()
        return answer

    async def _keep(self, request: web.Request) -> web.Response:
        export, number = self._named(request)
        export.keep(number)
        return _json(export.state())

    def _named(self, request: web.Request) -> tuple[Export, int]:
        number = request.match_info["part"]
        if not (number.isascii() and number.isdecimal() and len(number) <= PART_DIGITS_MAX):
            raise RequestError(f"the part in the path: {number!r}", "give a whole number from 1")
        return self._bundles.export(request.match_info["export"]), int(number)

    async def _ack(self, request: web.Request) -> web.Response:
        content = await _up_to(request, ACK_BUNDLE_BYTES_MAX)
        try:
            return _json(await self._bundles.take(content))
        except BundleError as error:
            said = {"error": str(error), "hint": error.hint, "verdict": error.verdict}
            return _json(said, 400)


def _break_off(request: web.Request, export: Export, why: str) -> None:
    """End the connection: an answer that stops without its end is not taken for a whole one."""
    export.failure = why
    log.warning("export %s: a part was broken off: %s", export.id, why)
    if request.transport:
        request.transport.abort()


async def _up_to(request: web.Request, size_bytes: int) -> bytes:
    """The first bytes of a body; what is beyond them is left."""
    taken = bytearray()
    while len(taken) < size_bytes and (step := await request.content.readany()):
        taken += step
    return bytes(taken[:size_bytes])


def _json(document: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), status=status, content_type="application/json"
    )
