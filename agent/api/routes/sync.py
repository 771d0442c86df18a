"""The link's doors: how it goes, and an operator's orders to it."""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get, post
from agent.errors import RequestError
from agent.forms import Rate, Seconds
from agent.shown import Sync

log = logging.getLogger("link")
T = TypeVar("T")
LIMIT_FORM = '{"rate_bytes_per_s_max": 65536, "for_s": 7200} or {"rate_bytes_per_s_max": null}'


class PauseOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a pause: for so long, or (null) until it is resumed."""

    for_s: Seconds | None = None


class LimitOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a limit: this rate in place of the configured ones; null ends such an order."""

    rate_bytes_per_s_max: Rate | None
    for_s: Seconds | None = None


class NowOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a now: without a rate for so long."""

    unlimited_s: Seconds | None = None


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a resume."""


class Control(Protocol):
    """What carries the orders out; agent/sync/budget/control.py says what they mean and raise."""

    async def pause(self, for_s: float | None) -> None: ...  # noqa: D102
    async def resume(self) -> None: ...  # noqa: D102
    async def limit(self, bytes_per_s: int | None, for_s: float | None) -> None: ...  # noqa: D102
    def now(self, unlimited_s: float | None) -> None: ...  # noqa: D102


class SyncDoors:
    """The routes. Each order answers with the state that follows from it."""

    def __init__(self, control: Control, state: Callable[[], Awaitable[Sync]]) -> None:
        self._control = control
        self._state = state

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get("/api/v1/sync", self._show, "How the link goes.", Sync),
            post(
                "/api/v1/sync/now",
                self._now,
                "Send at once what can be sent.",
                Sync,
                body=NowOrder,
                refuses=(409,),
            ),
            post("/api/v1/sync/pause", self._pause, "Send nothing.", Sync, body=PauseOrder),
            post("/api/v1/sync/resume", self._resume, "Send again.", Sync, body=Nothing),
            post("/api/v1/sync/limit", self._limit, "Send at most so much.", Sync, body=LimitOrder),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return await self._answer()

    async def _now(self, request: web.Request) -> web.Response:
        order = await _order(request, NowOrder, '{"unlimited_s": 600} or {}')
        self._control.now(order.unlimited_s)
        log.info("an operator ordered: now, without a rate for %s s", order.unlimited_s or 0)
        return await self._answer()

    async def _pause(self, request: web.Request) -> web.Response:
        order = await _order(request, PauseOrder, '{"for_s": 7200} or {}')
        await self._control.pause(order.for_s)
        log.info("an operator ordered: pause, %s", _span(order.for_s))
        return await self._answer()

    async def _resume(self, request: web.Request) -> web.Response:
        await _order(request, Nothing, "{}")
        await self._control.resume()
        log.info("an operator ordered: resume")
        return await self._answer()

    async def _limit(self, request: web.Request) -> web.Response:
        order = await _order(request, LimitOrder, LIMIT_FORM)
        rate = order.rate_bytes_per_s_max
        if rate is None and order.for_s is not None:
            raise RequestError(
                f"the body of {request.path}: for_s goes with a rate, and there is none",
                "leave for_s out; to send without a rate for a while, POST "
                '{"unlimited_s": 600} to /api/v1/sync/now',
            )
        await self._control.limit(rate, order.for_s)
        said = "none" if rate is None else f"{rate} bytes/s, {_span(order.for_s)}"
        log.info("an operator ordered: limit %s", said)
        return await self._answer()

    async def _answer(self) -> web.Response:
        return document(await self._state())


def _span(for_s: float | None) -> str:
    return "until it is taken back" if for_s is None else f"for {for_s:g} s"


async def _order(request: web.Request, kind: type[T], form: str) -> T:
    """The body of a request. Raises RequestError with what is wrong in it."""
    query_of(request, NoQuery)
    return await order_of(request, kind, form)
