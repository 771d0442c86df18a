"""The doors that machines ask how the device is: an orchestrator, a load balancer, a scraper.

`live` and `ready` are open to all, and say one word; who may read learns the rest.
"""

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Handler, Route
from agent.forms import Scope
from agent.health.checks.ready import Ready
from agent.health.checks.smart import Checkup, Smart


class Live(Struct, frozen=True):
    """The loop turns: else there is no answer."""

    live: bool


class IsReady(Struct, frozen=True):
    """Whether calls and records are taken."""

    ready: bool


class HealthDoors:
    """The routes."""

    def __init__(self, ready: Ready, smart: Smart) -> None:
        self._is_ready = ready
        self._smart = smart

    def routes(self) -> list[Route]:
        """What is served."""

        def door(path: str, handler: Handler, summary: str, answer: type, *scopes: Scope) -> Route:
            answers = {200: answer, 503: answer}
            return Route("GET", f"/api/v1/health/{path}", handler, scopes, summary, answers)

        return [
            door("live", self._live, "Whether the agent runs.", Live)._replace(answers={200: Live}),
            door("ready", self._ready, "Whether it takes calls and records.", IsReady),
            door(
                "smart",
                self._report,
                "Ask each part how it is, and run a model of each domain.",
                Checkup,
                "read",
            ),
        ]

    async def _live(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(Live(True))

    async def _ready(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        ready = await self._is_ready.now()
        return document(IsReady(ready), 200 if ready else 503)

    async def _report(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        report = await self._smart.now()
        return document(report, 503 if report.status == "unhealthy" else 200)
