"""The doors about the device as a whole: how it is, for machines, people and scrapers."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Media, Route, get
from agent.health.status import Health, Status

TEXTS = (Media("text/plain"), Media("application/openmetrics-text"))
Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]  # from `Accept`: a body, its media type


class DeviceDoors:
    """The routes."""

    def __init__(
        self,
        status: Status,
        metrics: Metrics,
        active_requests: Callable[[], int],
    ) -> None:
        self._status = status
        self._metrics = metrics
        self._active_requests = active_requests

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route(
                *("GET", "/api/v1/health", self._health, ("read",), "How the device is, in short."),
                {200: Health, 503: Health},
            ),
            get(
                "/api/v1/status",
                self._whole_status,
                "The whole state of the device.",
                self._status.form,
            ),
            get("/metrics", self._all_metrics, "The metrics, for Prometheus.", TEXTS),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        health = self._status.health(self._active_requests())
        return document(health, 503 if health["status"] == "unhealthy" else 200)

    async def _whole_status(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(await self._status.document())

    async def _all_metrics(self, request: web.Request) -> web.Response:
        body, kind = await self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})
