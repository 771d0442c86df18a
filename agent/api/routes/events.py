"""The doors for whoever watches the device: its whole state as it changes, and what is wrong."""

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.events import Listeners, event, events
from agent.api.form.live import Live
from agent.api.form.route import Route, get
from agent.errors import StoreError
from agent.health.conditions import Condition, Conditions, Word
from agent.health.status import Status

STATUS_S = 2.0


class Held(Struct, frozen=True):
    """The conditions that hold, the gravest first, and one word for all of them."""

    status: Word
    conditions: list[Condition]


class EventDoors:
    """The routes."""

    def __init__(self, status: Status, conditions: Conditions, listeners: Listeners) -> None:
        self._status = status
        self._conditions = conditions
        self._listeners = listeners
        self._live = Live(self._told, conditions.changes, STATUS_S)

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                "/api/v1/events",
                self._events,
                "The whole state, at once and whenever it has changed.",
                events(status=self._status.form),
                refuses=(503,),
            ),
            get("/api/v1/conditions", self._held, "What is wrong, and what to do.", Held),
        ]

    async def _events(self, request: web.Request) -> web.StreamResponse:
        query_of(request, NoQuery)
        return await self._listeners.serve(request, self._live.watch())

    async def _told(self) -> bytes:
        try:
            return event("status", await self._status.document())
        except StoreError as error:  # it may work again, and then there is a state again
            return event("trouble", {"error": str(error), "hint": error.hint})

    async def _held(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(Held(self._conditions.status(), self._conditions.all()))
