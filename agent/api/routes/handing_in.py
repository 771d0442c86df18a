"""How a job comes in: as one that is handed in, or as an `infer` that is not waited for.

Both bring a request of the Open Inference Protocol v2 (JSON, or its binary extension). The
protocol's own `id` is the job's, so the same id twice is the same job.

Limits: those of `infer` (form/asked.py) for a body; BODIES_MAX come in at once, and have their room
with all others (room.py). CUT_MAX of them are cut into chunks at once, the others wait for that: it
takes several times their size.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Protocol, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.entry.body import body_of
from agent.api.entry.guard import key_of
from agent.api.entry.room import Places, Room, Share
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, bound_of, query_of
from agent.api.form.places import JobId
from agent.errors import RequestError
from agent.inference import oip_asked
from agent.inference.oip_parameters import OfRequest
from agent.inference.wire import Buffer
from agent.store.jobrows import CLASSES, Class, State
from agent.store.jobshown import JobShown
from agent.store.tensors import Tensor

JOBS = "/api/v1/jobs"
BODIES_MAX, CUT_MAX = 4, 2
MODEL_CHARS_MAX = 128  # no model has a longer name, and an error repeats it
TOOK_S = 1.0  # of a job that is taken in, before one was
TOOK_WEIGHT = 0.3  # of the last one
LATER = "respond-async"
FORM = '{"model": "name", "class": "batch", "inputs": [{"name", "datatype", "shape", "data"}]}'
T = TypeVar("T")
ModelNamed = Annotated[str, Meta(max_length=MODEL_CHARS_MAX)]


class Order(Struct, frozen=True):
    """What of a body is the door's; the rest is the protocol's."""

    model: ModelNamed
    klass: Class = field(name="class", default="batch")
    id: JobId | None = None


class Handed(Struct, frozen=True):
    """Body of a job: a request to a model, and the door's part of it."""

    model: ModelNamed
    inputs: oip_asked.Inputs
    klass: Class = field(name="class", default="batch")
    id: JobId | None = None
    outputs: oip_asked.Outputs = []
    parameters: OfRequest = OfRequest()


class Later(Struct, frozen=True):
    """What of an `infer` matters to a job beside its tensors."""

    id: JobId | None = None
    parameters: OfRequest = OfRequest()


class Accepted(Struct, frozen=True):
    """An `infer` that became a job: its id, and how that stands."""

    request_id: str
    status: State


# The inputs of a request, and the names of the outputs that it wants (none: all). It raises
# RequestError, and passes over what stands beside them.
Parse = Callable[[Mapping[str, str], Buffer], tuple[Sequence[Tensor], Sequence[str]]]


class Submit(Protocol):
    """Who keeps jobs; agent/jobs/queue.py says what it raises."""

    async def submit(  # noqa: D102
        self,
        model: str,
        klass: Class,
        name: str | None,
        inputs: Sequence[Tensor],
        wanted: Sequence[str],
    ) -> tuple[JobShown, bool]: ...


class HandingIn:
    """The bodies that come in, a few at a time."""

    def __init__(self, queue: Submit, parse: Parse, room: Room | None = None) -> None:
        """`room` is for the bodies of all doors."""
        self._queue = queue
        self._parse = parse
        self._room = room or Room()
        self.places = Places(BODIES_MAX, "jobs")
        self._cut = asyncio.Semaphore(CUT_MAX)
        self._took_s = TOOK_S

    async def job(self, request: web.Request) -> web.Response:
        """202 with the new job, 200 with the one that has this id already."""
        query_of(request, NoQuery)
        async with self._taken(request) as body:
            order = _said(request, body, Order)
            about = (order.model, order.klass, order.id)
            told, fresh = await self._submit(request, body, about)
        answer = document(told, 202 if fresh else 200)
        answer.headers["Location"] = f"{JOBS}/{told['id']}"
        return answer

    async def later(self, request: web.Request) -> web.Response:
        """202 with the job that an `infer` became, or was before."""
        query_of(request, NoQuery)
        if "version" in request.match_info:
            raise RequestError(
                "a job is answered by the version that serves when its turn comes",
                f"leave the version out, or do not ask for {LATER}",
            )
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise RequestError(
                "a job's body comes as it is, not compressed",
                f"send it so, or do not ask for {LATER}",
            )
        async with self._taken(request) as body:
            asked = _said(request, body, Later)
            about = (request.match_info["model"], _class_of(asked.parameters), asked.id)
            told, _ = await self._submit(request, body, about)
        answer = document(Accepted(told["id"], told["state"]), 202)
        answer.headers["Location"] = f"{JOBS}/{told['id']}"
        answer.headers["Preference-Applied"] = LATER
        return answer

    @asynccontextmanager
    async def _taken(self, request: web.Request) -> AsyncIterator[Buffer]:
        """A body, while it has its place and room. Raises BusyError, TooLarge, TooSlow."""
        caller, begun_s = key_of(request), asyncio.get_running_loop().time()
        share = Share(self._room, caller)
        with self.places.place(caller, self._took_s):
            try:
                yield await body_of(request, bound_of(request), share)
            finally:
                share.leave()
                took_s = asyncio.get_running_loop().time() - begun_s
                self._took_s += TOOK_WEIGHT * (took_s - self._took_s)

    async def _submit(
        self, request: web.Request, body: Buffer, about: tuple[str, Class, str | None]
    ) -> tuple[JobShown, bool]:
        async with self._cut:
            inputs, wanted = await asyncio.to_thread(self._parse, request.headers, body)
            return await self._queue.submit(*about, inputs, wanted)


def wants_later(request: web.Request) -> bool:
    """Whether an `infer` is not to be waited for (RFC 7240)."""
    said = ",".join(request.headers.getall("Prefer", []))
    return LATER in (one.partition(";")[0].strip().lower() for one in said.split(","))


def _class_of(told: OfRequest) -> Class:
    """Raises RequestError for what a job cannot carry."""
    for name, given in (("timeout", told.timeout), ("sequence_id", told.sequence_id or None)):
        if given is not None:
            raise RequestError(
                f"parameters.{name}: a job has none: its turn comes when it comes",
                f"leave it out, or do not ask for {LATER}",
            )
    found = next((one for one in CLASSES if one == (told.klass or "interactive")), None)
    if found is None:
        raise RequestError("parameters.class: it is none", f"known: {', '.join(CLASSES)}")
    return found


def _said(request: web.Request, body: Buffer, kind: type[T]) -> T:
    """The door's part of a body. Raises RequestError."""
    size = oip_asked.json_size(request.headers.get(oip_asked.HEADER), body)
    try:
        return msgspec.json.decode(memoryview(body)[:size], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body of {request.path}: {error}", f"send {FORM}") from error
