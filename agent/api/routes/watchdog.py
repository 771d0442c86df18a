"""The doors of the watchdog: what it sees, and what it did."""

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get, post
from agent.health.watchdog.chronicle import Chronicle, Noted
from agent.health.watchdog.watchdog import Seen, Watchdog


class Watched(Struct, frozen=True):
    """Whether whoever would reset this agent, or this machine, is being fed; and each part."""

    fed: bool
    parts: list[Seen]


class History(Struct, frozen=True):
    """The last remedies, the newest first."""

    events: list[Noted]


class Trial(Struct, frozen=True):
    """The part that is to stand still: one of GET /api/v1/watchdog, or `loop`."""

    part: str


class WatchdogDoors:
    """The routes."""

    def __init__(self, watchdog: Watchdog, chronicle: Chronicle) -> None:
        self._watchdog = watchdog
        self._chronicle = chronicle

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
        ]

    async def _seen(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(Watched(self._watchdog.fed, self._watchdog.seen()))

    async def _test(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        trial = await order_of(request, Trial, '{"part": "store"}')
        self._watchdog.hang(trial.part)
        return document(Watched(self._watchdog.fed, self._watchdog.seen()))

    async def _history(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(History(self._chronicle.last()))
