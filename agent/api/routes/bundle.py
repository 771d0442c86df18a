"""The doors of the air gap: an export part by part, and the ack bundle that comes back.

They answer on the unix socket alone, but for what an export's state and the device's key are.
"""

from collections.abc import AsyncGenerator
from typing import Annotated, Protocol

from aiohttp import web
from msgspec import Meta, Struct

from agent.api.entry.body import Bound, body_of
from agent.api.entry.guard import key_of
from agent.api.entry.room import Room, Share
from agent.api.form.answers import document, streamed
from agent.api.form.asked import order_of
from agent.api.form.route import BYTES, Route, get, post
from agent.errors import BundleError, HoldfastError, RequestError, TooLarge
from agent.protocol.bundle import ACK_BUNDLE_BYTES_MAX, PART_BYTES_MAX, PART_BYTES_MIN
from agent.protocol.signing import Key
from agent.shown import AckTaken, ExportState

BASE = "/api/v1/bundle"
PART_DIGITS_MAX = 9
ACK = Bound(ACK_BUNDLE_BYTES_MAX, "give an ack bundle of the fleet (*.ack.hfb)")
HEADERS = {"Content-Type": "application/octet-stream"}


class ExportOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of the beginning of an export: how large a part may be."""

    part_bytes: Annotated[int, Meta(ge=PART_BYTES_MIN, le=PART_BYTES_MAX)] = 1 << 30


class PublicKey(Struct, frozen=True):
    """With which what this device signs is checked; `hf1pub:` and base64."""

    key: str


class Export(Protocol):
    """An export that has begun."""

    id: str
    failure: str | None

    def state(self) -> ExportState:
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

    async def take(self, content: bytes) -> AckTaken:
        """Take an ack bundle."""


class BundleDoors:
    """The routes."""

    def __init__(self, bundles: Bundles, room: Room | None = None) -> None:
        """`room` is for the bodies of all doors."""
        self._bundles = bundles
        self._room = room or Room()

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(f"{BASE}/key", self._key, "The device's public key.", PublicKey),
            get(
                f"{BASE}/export",
                self._state,
                "How far the last export is.",
                ExportState,
                refuses=(404,),
            ),
            post(
                f"{BASE}/export",
                self._begin,
                "Begin an export.",
                ExportState,
                status=201,
                body=ExportOrder,
            ),
            post(f"{BASE}/export/{{export}}/{{part}}", self._part, "A part of the export.", BYTES),
            post(
                f"{BASE}/export/{{export}}/{{part}}/kept",
                self._keep,
                "The part is safe where it was taken to.",
                ExportState,
            ),
            post(
                f"{BASE}/ack",
                self._ack,
                "Take a bundle of the fleet: an ack, or commands.",
                AckTaken,
                body=BYTES,
                refuses=(503,),
            ),
        ]

    async def _key(self, _: web.Request) -> web.Response:
        return document(PublicKey((await self._bundles.key()).public))

    async def _state(self, _: web.Request) -> web.Response:
        return document(self._bundles.export().state())

    async def _begin(self, request: web.Request) -> web.Response:
        order = await order_of(request, ExportOrder, '{"part_bytes": 1073741824}')
        return document((await self._bundles.begin(order.part_bytes)).state(), 201)

    async def _part(self, request: web.Request) -> web.StreamResponse:
        """A part as it is made. One that fails ends without the end of its answer."""
        export, number = self._named(request)

        def broken(error: HoldfastError) -> None:
            export.failure = str(error)

        return await streamed(request, export.part(number), HEADERS, broken)

    async def _keep(self, request: web.Request) -> web.Response:
        export, number = self._named(request)
        export.keep(number)
        return document(export.state())

    def _named(self, request: web.Request) -> tuple[Export, int]:
        number = request.match_info["part"]
        if not (number.isascii() and number.isdecimal() and len(number) <= PART_DIGITS_MAX):
            raise RequestError(f"the part in the path: {number!r}", "give a whole number from 1")
        return self._bundles.export(request.match_info["export"]), int(number)

    async def _ack(self, request: web.Request) -> web.Response:
        share = Share(self._room, key_of(request))
        try:
            content = await body_of(request, ACK, share)
            return document(await self._bundles.take(bytes(content)))
        except BundleError as error:
            said = {"error": str(error), "hint": error.hint, "verdict": error.verdict}
            return document(said, 400)
        except TooLarge as error:  # no ack bundle is
            said = {"error": str(error), "hint": error.hint, "verdict": "not_a_bundle"}
            return document(said, 413)
        finally:
            share.leave()
