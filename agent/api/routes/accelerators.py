"""The door of the accelerators."""

from collections.abc import Callable

from aiohttp import web

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Route, get
from agent.health.accelerators import AcceleratorsShown


class AcceleratorDoors:
    """The routes."""

    def __init__(self, shown: Callable[[], AcceleratorsShown]) -> None:
        """`shown` is what the last reading told; it asks nobody."""
        self._shown = shown

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                "/api/v1/accelerators",
                self._all,
                "The accelerators, as they were read last.",
                AcceleratorsShown,
            )
        ]

    async def _all(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._shown())
