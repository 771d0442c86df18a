"""The doors of the log: its last lines, and those that come."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from aiohttp import web
from msgspec import Meta, Struct, structs

from agent.api.form.answers import document
from agent.api.form.asked import query_of
from agent.api.form.events import Listeners, event, events
from agent.api.form.route import Route, get
from agent.logs import Lines, LogLine, Recent

Level = Literal["debug", "info", "warning", "error"]
COUNT_MAX = 1000
NUMBER_MAX = (1 << 63) - 1
NUMBER_DIGITS_MAX = 18
Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]


class LogQuery(Struct, frozen=True):
    """The last `count` lines of at least this level, of those after the one of this number."""

    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 100
    level: Level = "debug"
    after: Number = 0


class FollowQuery(Struct, frozen=True):
    """Lines of at least this level, after the one of this number; by default those to come."""

    level: Level = "debug"
    after: Number | None = None


class Missed(Struct, frozen=True):
    """So many lines of the log were not kept until they could be told."""

    lines: int


class LogDoors:
    """The routes."""

    def __init__(self, recent: Recent, listeners: Listeners) -> None:
        self._recent = recent
        self._listeners = listeners

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get("/api/v1/logs", self._lines, "The last lines of the log.", Lines, query=LogQuery),
            get(
                "/api/v1/logs/events",
                self._events,
                "The lines of the log, as they come.",
                events(line=LogLine, missed=Missed),
                query=FollowQuery,
                refuses=(503,),
            )._replace(takes=("Last-Event-ID",)),
        ]

    async def _lines(self, request: web.Request) -> web.Response:
        query = query_of(request, LogQuery)
        found = self._recent.lines(query.after, query.level)
        return document(structs.replace(found, lines=found.lines[-query.count :]))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        query = query_of(request, FollowQuery)
        after = self._recent.last if query.after is None else query.after
        said = request.headers.get("Last-Event-ID", "")  # a browser that comes again
        if said.isascii() and said.isdigit() and len(said) <= NUMBER_DIGITS_MAX:
            after = int(said)
        return await self._listeners.serve(request, self._following(after, query.level))

    async def _following(self, after: int, level: Level) -> AsyncGenerator[bytes, None]:
        seen = -1
        while True:
            seen = await self._recent.changes.after(seen)
            found = self._recent.lines(after, level)
            after = found.last
            if found.missed:
                yield event("missed", Missed(found.missed))
            for line in found.lines:
                yield event("line", line, line.number)
