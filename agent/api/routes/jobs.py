"""The doors of the durable jobs: hand one in, see how far it is, take its result, give it up."""

import logging
from collections.abc import AsyncGenerator, Collection
from typing import Annotated, Protocol
from weakref import WeakValueDictionary

from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.entry.refusals import refusal
from agent.api.entry.room import Room
from agent.api.form.answers import document, streamed
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.events import Listeners, event, events
from agent.api.form.live import Live
from agent.api.form.route import BYTES, Route, get, post
from agent.api.routes.handing_in import JOBS, Handed, HandingIn, Parse, Submit
from agent.api.routes.job_result import Result, ResultShown
from agent.changes import Changes
from agent.forms import Scope
from agent.inference import oip_asked
from agent.store.jobrows import STATES, Job, State
from agent.store.jobshown import JobShown, JobsShown

log = logging.getLogger("jobs")
COUNT_MAX = 1000
NUMBER_MAX = (1 << 63) - 1
LOOK: tuple[Scope, ...] = ("read", "infer")
BINARY = "application/octet-stream"
REFRESH_S = 5.0  # ages and estimates of a job that does not move


class PageQuery(Struct, frozen=True):
    """From which number on, how many, and only those in this state."""

    first: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] = field(name="from", default=1)
    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 100
    state: State | None = None


class ResultQuery(Struct, frozen=True):
    """Raw tensors, or JSON; by default what the header Accept asks for."""

    binary_data_output: bool | None = None


class Queue(Submit, Protocol):
    """Who keeps the jobs; agent/jobs/queue.py says what each means and raises."""

    async def job(self, name: str) -> Job: ...  # noqa: D102
    async def show(self, name: str) -> JobShown: ...  # noqa: D102
    async def page(  # noqa: D102
        self, first: int, count: int, states: Collection[State]
    ) -> JobsShown: ...
    async def chunk(self, name: str, number: int) -> bytes: ...  # noqa: D102
    async def cancel(self, name: str) -> JobShown: ...  # noqa: D102
    async def remove(self, name: str) -> None: ...  # noqa: D102
    def changes(self, name: str) -> Changes: ...  # noqa: D102


class Removed(Struct, frozen=True):
    """The job that was forgotten."""

    id: str
    removed: bool = True


class JobDoors:
    """The routes."""

    def __init__(
        self, queue: Queue, parse: Parse, listeners: Listeners, room: Room | None = None
    ) -> None:
        """`room` is for the bodies of all doors."""
        self.handing_in = HandingIn(queue, parse, room)
        self._queue = queue
        self._listeners = listeners
        self._watched: WeakValueDictionary[str, Live[JobShown]] = WeakValueDictionary()

    def routes(self) -> list[Route]:
        """What is served."""
        one = f"{JOBS}/{{job}}"
        return [
            Route(
                *("POST", JOBS, self.handing_in.job, ("infer",), "Hand a job in."),
                {202: JobShown, 200: JobShown},
                body=(Handed, BYTES),
                refuses=(404, 409, 503, 507),
                takes=(oip_asked.HEADER,),
                about="202: it is kept; 200: one of this id is kept already, and stands for it.",
                tells={200: ("Location",), 202: ("Location",)},
            ),
            get(JOBS, self._page, "The jobs, by number.", JobsShown, scopes=LOOK, query=PageQuery),
            get(one, self._show, "How far a job is.", JobShown, scopes=LOOK),
            get(
                f"{one}/events",
                self._events,
                "The progress of a job, to its end.",
                events(progress=JobShown),
                scopes=LOOK,
                refuses=(503,),
            ),
            Route(
                *("DELETE", one, self._remove, ("infer",), "Forget a job."),
                {200: Removed},
                refuses=(409,),
            ),
            Route(
                *(
                    "GET",
                    f"{one}/result",
                    self._result,
                    ("infer",),
                    "The result of a job that is done.",
                ),
                {200: (ResultShown, BYTES)},
                ResultQuery,
                refuses=(409,),
                tells={200: (oip_asked.HEADER,)},
            ),
            post(
                f"{one}/cancel",
                self._cancel,
                "Give a job up.",
                JobShown,
                scopes=("infer",),
                refuses=(409,),
            ),
        ]

    async def _page(self, request: web.Request) -> web.Response:
        query = query_of(request, PageQuery)
        states = [query.state] if query.state else STATES
        return document(await self._queue.page(query.first, query.count, states))

    async def _show(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(await self._queue.show(_name(request)))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        query_of(request, NoQuery)
        name = _name(request)
        await self._queue.job(name)  # where there is none, that is the answer
        return await self._listeners.serve(request, self._progress(name))

    async def _progress(self, name: str) -> AsyncGenerator[bytes, None]:
        live = self._watched.get(name)
        if live is None:
            changes = self._queue.changes(name)
            live = Live(lambda: self._queue.show(name), changes, REFRESH_S)
            self._watched[name] = live
        async for told in live.watch():
            yield event("progress", told)
            if told["ended_us"] is not None:
                return

    async def _cancel(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        told = await self._queue.cancel(_name(request))
        log.info("job %s was cancelled", told["id"])
        return document(told)

    async def _remove(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        await self._queue.remove(_name(request))
        return document(Removed(_name(request)))

    async def _result(self, request: web.Request) -> web.StreamResponse:
        binary = query_of(request, ResultQuery).binary_data_output
        if binary is None:
            binary = BINARY in request.headers.get("Accept", "")
        job = await self._queue.job(_name(request))
        if job.state != "done":
            why = f": {job.error}" if job.error else ""
            return refusal(409, f"job {job.id} is {job.state}{why}", f"see {JOBS}/{job.id}")
        result = Result(job, lambda number: self._queue.chunk(job.id, number))
        if not binary:
            return await streamed(request, result.json(), {"Content-Type": "application/json"})
        length, body = await result.binary()
        headers = {"Content-Type": BINARY, oip_asked.HEADER: str(length)}
        return await streamed(request, body, headers)


def _name(request: web.Request) -> str:
    return request.match_info["job"]
