"""The doors of the watchdog: what it sees, what it did, and what it would do."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get, post
from agent.health.starts.starts import Starts, StartShown
from agent.health.watchdog.chronicle import Chronicle, Noted
from agent.health.watchdog.device_seen import DeviceSeen, HardwareShown
from agent.health.watchdog.disarmed import DISARMED_S, DISARMED_S_MAX
from agent.health.watchdog.watchdog import Seen, Watchdog
from agent.host.resets.resets import ResetHook


class Watched(Struct, frozen=True):
    """Whether whoever would reset this agent, or this machine, is being fed; and each part.

    `disarmed_s` is for how long it is disarmed yet; null: it is not.
    `start` is why the agent began, and how often that may yet be; `hardware` is the machine's own
    watchdog.
    """

    fed: bool
    parts: list[Seen]
    disarmed_s: float | None
    start: StartShown
    hardware: HardwareShown


class History(Struct, frozen=True):
    """The last remedies, the newest first."""

    events: list[Noted]


class Trial(Struct, frozen=True):
    """The part that is to stand still: one of GET /api/v1/watchdog, or `loop`."""

    part: str


class Disarming(Struct, frozen=True, forbid_unknown_fields=True):
    """For how long nothing is to be done."""

    for_s: Annotated[float, Meta(ge=1, le=DISARMED_S_MAX)] = DISARMED_S


class Arming(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an arming."""


class Hooks(Struct, frozen=True):
    """What a reset of this machine would try, in order."""

    hooks: list[ResetHook]


class WatchdogDoors:
    """The routes."""

    def __init__(
        self,
        watchdog: Watchdog,
        chronicle: Chronicle,
        hooks: Callable[[], Awaitable[list[ResetHook]]],
        starts: Starts,
        device: DeviceSeen,
    ) -> None:
        """`hooks` looks at all reset hooks, and pulls none."""
        self._watchdog = watchdog
        self._chronicle = chronicle
        self._hooks = hooks
        self._starts = starts
        self._device = device

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get("/api/v1/watchdog", self._seen, "What the watchdog sees.", Watched),
            get("/api/v1/watchdog/history", self._history, "What it did.", History),
            post(
                "/api/v1/watchdog/test",
                self._test,
                "Have a part stand still for real, to see it come back.",
                Watched,
                scopes=("admin",),
                body=Trial,
                refuses=(404, 409),
            ),
            get(
                "/api/v1/watchdog/resets",
                self._resets,
                "What a reset of the machine would try; nothing is done.",
                Hooks,
                scopes=("admin",),
            ),
            post(
                "/api/v1/watchdog/disarm",
                self._disarm,
                "Have it judge and do nothing, for a while.",
                Watched,
                scopes=("admin",),
                body=Disarming,
            ),
            post(
                "/api/v1/watchdog/arm",
                self._arm,
                "End its being disarmed.",
                Watched,
                scopes=("admin",),
                body=Arming,
            ),
            post(
                "/api/v1/watchdog/resume",
                self._resume,
                "Leave safe mode, with all budgets of restarts and resets anew.",
                Watched,
                scopes=("admin",),
            ),
        ]

    async def _seen(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return await self._watched()

    async def _resume(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        await self._starts.resume()
        return await self._watched()

    async def _test(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        trial = await order_of(request, Trial, '{"part": "store"}')
        self._watchdog.hang(trial.part)
        return await self._watched()

    async def _history(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(History(self._chronicle.last()))

    async def _resets(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(Hooks(await self._hooks()))

    async def _disarm(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, Disarming, '{"for_s": 3600}')
        self._watchdog.disarm(order.for_s)
        return await self._watched()

    async def _arm(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        await order_of(request, Arming, "{}")
        self._watchdog.arm()
        return await self._watched()

    async def _watched(self) -> web.Response:
        watchdog, hardware = self._watchdog, await self._device.now()
        return document(
            Watched(
                *(watchdog.fed, watchdog.seen(), watchdog.disarmed.left_s),
                *(self._starts.shown(), hardware),
            )
        )
