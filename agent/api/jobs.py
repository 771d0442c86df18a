"""The doors of the durable jobs: hand one in, see how far it is, take its result, give it up.

What is handed in is a request of the Open Inference Protocol v2 (JSON, or its binary extension)
with the model's name and a class beside the inputs; the protocol's own `id` is the job's.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.answers import document, streamed
from agent.api.asked import flag_of, number_of, query_of
from agent.api.guard import refusal
from agent.api.job_result import Result
from agent.errors import RequestError
from agent.store.jobrows import STATES, Class, Job, State
from agent.store.tensors import Tensor

log = logging.getLogger("jobs")
JOBS = "/api/v1/jobs"
BODY_BYTES_MAX = 64 << 20
BODIES_MAX = 2  # that are read at once
BODY_S = 60.0  # in which one has to be there; from this machine it takes a second
COUNT_MAX = 1000
NUMBER_MAX = (1 << 63) - 1
HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
FORM = '{"model": "name", "class": "batch", "inputs": [{"name", "datatype", "shape", "data"}]}'
Id = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="an id of 1 to 64 letters, digits, ., _ and -",
    ),
]


class Order(Struct, frozen=True):
    """What of a body is the door's; the rest is the protocol's."""

    model: str
    klass: Class = field(name="class", default="batch")
    id: Id | None = None


# The inputs of a request, and the names of the outputs that it wants (none: all). It raises
# RequestError, and passes over what stands beside them.
Parse = Callable[[Mapping[str, str], bytes], tuple[Sequence[Tensor], Sequence[str]]]


class Queue(Protocol):
    """Who keeps the jobs; agent/jobs/queue.py says what each means and raises."""

    async def submit(  # noqa: D102
        self,
        model: str,
        klass: Class,
        name: str | None,
        inputs: Sequence[Tensor],
        wanted: Sequence[str],
    ) -> tuple[dict[str, Any], bool]: ...
    async def job(self, name: str) -> Job: ...  # noqa: D102
    async def show(self, name: str) -> dict[str, Any]: ...  # noqa: D102
    async def page(  # noqa: D102
        self, first: int, count: int, states: Collection[State]
    ) -> dict[str, Any]: ...
    async def chunk(self, name: str, number: int) -> bytes: ...  # noqa: D102
    async def cancel(self, name: str) -> dict[str, Any]: ...  # noqa: D102
    async def remove(self, name: str) -> None: ...  # noqa: D102


class JobDoors:
    """The routes."""

    def __init__(self, queue: Queue, parse: Parse) -> None:
        self._queue = queue
        self._parse = parse
        self._bodies = 0  # that are being read

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        one = f"{JOBS}/{{job:[^/]*}}"
        return [
            web.post(JOBS, self._submit),
            web.get(JOBS, self._page),
            web.get(one, self._show),
            web.delete(one, self._remove),
            web.get(f"{one}/result", self._result),
            web.post(f"{one}/cancel", self._cancel),
        ]

    async def _submit(self, request: web.Request) -> web.Response:
        """202 with the new job, 200 with the one that has this id already."""
        query_of(request)
        if self._bodies == BODIES_MAX:
            return refusal(503, f"{BODIES_MAX} jobs are being handed in", "try again soon")
        self._bodies += 1
        try:
            return await self._take_in(request)
        finally:
            self._bodies -= 1

    async def _take_in(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(request)
        except TimeoutError:
            return refusal(408, f"the body did not come within {BODY_S:g} s", "send it at once")
        if body is None:
            return refusal(413, f"the body is above {BODY_BYTES_MAX} bytes", "split the job")
        order = _order(request, body)
        inputs, wanted = await asyncio.to_thread(self._parse, request.headers, body)
        told, fresh = await self._queue.submit(order.model, order.klass, order.id, inputs, wanted)
        return document(told, 202 if fresh else 200)

    async def _page(self, request: web.Request) -> web.Response:
        query = query_of(request, "from", "count", "state")
        only = query.get("state")
        states = [one for one in STATES if only in (None, one)]
        if not states:
            raise RequestError(f"state: unknown state {only!r}", f"known: {', '.join(STATES)}")
        first = number_of("from", query.get("from", "1"), NUMBER_MAX)
        count = number_of("count", query.get("count", "100"), COUNT_MAX)
        return document(await self._queue.page(first, count, states))

    async def _show(self, request: web.Request) -> web.Response:
        query_of(request)
        return document(await self._queue.show(_name(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        query_of(request)
        told = await self._queue.cancel(_name(request))
        log.info("job %s was cancelled", told["id"])
        return document(told)

    async def _remove(self, request: web.Request) -> web.Response:
        query_of(request)
        await self._queue.remove(_name(request))
        return document({"id": _name(request), "removed": True})

    async def _result(self, request: web.Request) -> web.StreamResponse:
        query = query_of(request, "binary_data_output")
        binary = BINARY in request.headers.get("Accept", "")
        if "binary_data_output" in query:
            binary = flag_of("binary_data_output", query["binary_data_output"])
        job = await self._queue.job(_name(request))
        if job.state != "done":
            why = f": {job.error}" if job.error else ""
            return refusal(409, f"job {job.id} is {job.state}{why}", f"see {JOBS}/{job.id}")
        result = Result(job, lambda number: self._queue.chunk(job.id, number))
        if not binary:
            return await streamed(request, result.json(), {"Content-Type": "application/json"})
        length, body = await result.binary()
        headers = {"Content-Type": BINARY, HEADER_LENGTH: str(length)}
        return await streamed(request, body, headers)


async def _body(request: web.Request) -> bytes | None:
    """The whole body; None when it is too large."""
    taken = bytearray()
    while step := await request.content.readany():
        taken += step
        if len(taken) > BODY_BYTES_MAX:
            return None
    return bytes(taken)


def _order(request: web.Request, body: bytes) -> Order:
    """The door's part of a body. Raises RequestError."""
    header = request.headers.get(HEADER_LENGTH)
    if header is not None:
        body = body[: number_of(HEADER_LENGTH, header, len(body))]
    try:
        return msgspec.json.decode(body, type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body of {request.path}: {error}", f"send {FORM}") from error


def _name(request: web.Request) -> str:
    return request.match_info["job"]
