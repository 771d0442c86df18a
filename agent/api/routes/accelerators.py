"""The doors of the accelerators, and of what the board may take."""

from collections.abc import Callable

from aiohttp import web

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Route, get
from agent.health.accelerators import AcceleratorsShown
from agent.health.power.power import PowerShown


class AcceleratorDoors:
    """The routes."""

    def __init__(
        self, shown: Callable[[], AcceleratorsShown], power: Callable[[], PowerShown]
    ) -> None:
        """Both are what the last look told; they ask nobody."""
        self._shown = shown
        self._power_shown = power

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                "/api/v1/accelerators",
                self._all,
                "The accelerators, as they were read last.",
                AcceleratorsShown,
            ),
            get(
                "/api/v1/power",
                self._power,
                "The power profile in force, why, and what it is judged by.",
                PowerShown,
            ),
        ]

    async def _all(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._shown())

    async def _power(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._power_shown())
