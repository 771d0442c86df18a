"""How a job comes in: as one that is handed in, or as an `infer` that is not waited for.

Both bring a request of the Open Inference Protocol v2 (JSON, or its binary extension). The
protocol's own `id` is the job's, so the same id twice is the same job.

Limits: a body has BODY_BYTES_MAX and comes within BODY_S; BODIES_MAX are taken in at once, for one
takes several times its size while it is cut into chunks.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct, field

from agent.api.entry.refusals import refusal
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.places import JobId
from agent.errors import BusyError, RequestError
from agent.inference import oip
from agent.inference.oip_parameters import OfRequest
from agent.store.jobrows import CLASSES, Class, State
from agent.store.jobshown import JobShown
from agent.store.tensors import Tensor

JOBS = "/api/v1/jobs"
BODY_BYTES_MAX = 64 << 20
BODIES_MAX = 2  # that are read at once
BODY_S = 60.0  # in which one has to be there; from this machine it takes a second
TOOK_S = 1.0  # of a job that is taken in, before one was
TOOK_WEIGHT = 0.3  # of the last one
LATER = "respond-async"
FORM = '{"model": "name", "class": "batch", "inputs": [{"name", "datatype", "shape", "data"}]}'
T = TypeVar("T")


class Order(Struct, frozen=True):
    """What of a body is the door's; the rest is the protocol's."""

    model: str
    klass: Class = field(name="class", default="batch")
    id: JobId | None = None


class Handed(Struct, frozen=True):
    """Body of a job: a request to a model, and the door's part of it."""

    model: str
    inputs: list[oip.Given]
    klass: Class = field(name="class", default="batch")
    id: JobId | None = None
    outputs: list[oip.Wanted] = []
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
Parse = Callable[[Mapping[str, str], bytes], tuple[Sequence[Tensor], Sequence[str]]]


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

    def __init__(self, queue: Submit, parse: Parse) -> None:
        self._queue = queue
        self._parse = parse
        self._took_s = TOOK_S
        self.bodies = 0  # that are taken in now

    async def job(self, request: web.Request) -> web.Response:
        """202 with the new job, 200 with the one that has this id already."""
        query_of(request, NoQuery)
        with self._turn():
            body = await _body(request)
            if isinstance(body, web.Response):
                return body
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
        with self._turn():
            body = await _body(request)
            if isinstance(body, web.Response):
                return body
            asked = _said(request, body, Later)
            about = (request.match_info["model"], _class_of(asked.parameters), asked.id)
            told, _ = await self._submit(request, body, about)
        answer = document(Accepted(told["id"], told["state"]), 202)
        answer.headers["Location"] = f"{JOBS}/{told['id']}"
        answer.headers["Preference-Applied"] = LATER
        return answer

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Raises BusyError when enough are taken in."""
        if self.bodies == BODIES_MAX:
            raise BusyError(
                f"{BODIES_MAX} jobs are being handed in", "try again soon", self._took_s
            )
        self.bodies += 1
        begun_s = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self.bodies -= 1
            took_s = asyncio.get_running_loop().time() - begun_s
            self._took_s += TOOK_WEIGHT * (took_s - self._took_s)

    async def _submit(
        self, request: web.Request, body: bytes, about: tuple[str, Class, str | None]
    ) -> tuple[JobShown, bool]:
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


async def _body(request: web.Request) -> bytes | web.Response:
    """The whole body, or why it is not taken."""
    taken = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while step := await request.content.readany():
                taken += step
                if len(taken) > BODY_BYTES_MAX:
                    return refusal(
                        413, f"the body is above {BODY_BYTES_MAX} bytes", "split the job"
                    )
    except TimeoutError:
        return refusal(408, f"the body did not come within {BODY_S:g} s", "send it at once")
    return bytes(taken)


def _said(request: web.Request, body: bytes, kind: type[T]) -> T:
    """The door's part of a body. Raises RequestError."""
    size = oip.json_size(request.headers.get(oip.HEADER), body)
    try:
        return msgspec.json.decode(memoryview(body)[:size], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body of {request.path}: {error}", f"send {FORM}") from error
