"""The door for many calls at once: of several models, each answered for itself.

Limits: REQUESTS_MAX of them, in a body that is all JSON and as long as that of one may be; the
answers count with the body in the room for all bodies (room.py), and one that finds no room is
refused alone.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from agent.api.entry.body import body_of
from agent.api.entry.guard import key_of
from agent.api.entry.room import Share
from agent.api.entry.visiting import abandonable
from agent.api.form.answers import document
from agent.api.form.asked import JSON, NoQuery, query_of
from agent.api.form.route import Route, post
from agent.api.routes.handing_in import ModelNamed
from agent.api.routes.inference import (
    VERSION_DIGITS_MAX,
    Call,
    Inference,
    Reply,
    ending,
    refused,
)
from agent.errors import RequestError
from agent.inference import oip
from agent.inference.oip_asked import Listed
from agent.inference.wire import Buffer

REQUESTS_MAX = 256
TIMEOUT_S_MAX = 3600.0
TURN_BYTES = 1 << 20  # of requests, read in milliseconds; then others have their turn
WHOLE = JSON._replace(hint="send fewer requests at once, or large tensors raw, each by `infer`")
FORM = '{"requests": [{"model": "name", "inputs": [{"name", "datatype", "shape", "data"}]}]}'
NO_TIME = "the time of the whole batch was over before there was an answer"


class Named(Struct):
    """What of one request is the door's; the rest is as for `infer`."""

    model: ModelNamed
    version: int | Annotated[str, Meta(max_length=VERSION_DIGITS_MAX)] | None = None


class Batch(Struct):
    """Requests as for `infer`, each with its model; `timeout_s` is for all of them together."""

    requests: Annotated[
        list[Raw],
        Meta(
            min_length=1,
            max_length=REQUESTS_MAX,
            description="each as the body of `infer`, with its `model` and, if need be, `version`",
        ),
    ]
    timeout_s: Annotated[float, Meta(gt=0, le=TIMEOUT_S_MAX)] | None = None


class _Read(Struct):
    """A Batch, before its list is read."""

    requests: Raw
    timeout_s: Annotated[float, Meta(gt=0, le=TIMEOUT_S_MAX)] | None = None


_requests = Listed(Raw, REQUESTS_MAX)


class One(Struct, omit_defaults=True):
    """As it is sent; OneAnswered says what it means."""

    status: int
    answer: Raw | UnsetType = UNSET
    error: str | UnsetType = UNSET
    hint: str | UnsetType = UNSET
    retry_s: int | UnsetType = UNSET


class Answers(Struct):
    """As they are sent."""

    answers: list[One]


class OneAnswered(Struct, omit_defaults=True):
    """What came of a request: with 200 an answer as of `infer`, else an error and what to do.

    `retry_s` is when to try again, where that may help.
    """

    status: int
    answer: oip.Answered | UnsetType = UNSET
    error: str | UnsetType = UNSET
    hint: str | UnsetType = UNSET
    retry_s: int | UnsetType = UNSET


class AllAnswered(Struct):
    """Of each request, in their order."""

    answers: list[OneAnswered]


class _Refusal(NamedTuple):
    status: int
    error: str
    hint: str


class BatchDoors:
    """The routes."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            post(
                "/api/v1/infer/batch",
                self._batch,
                "Ask several models at once.",
                AllAnswered,
                scopes=("infer",),
                body=Batch,
                refuses=(503,),
            )
        ]

    async def _batch(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        share = Share(self._inference.room, key_of(request))
        try:
            with abandonable(request):
                body = await body_of(request, WHOLE, share)
                answers = await self._answers(_batch_of(body), share)
                return document(Answers(answers))
        finally:
            share.leave()

    async def _answers(self, batch: Batch, share: Share) -> list[One]:
        calls: list[Call | _Refusal] = []
        try:
            await self._begin(batch.requests, calls)
            made = [one for one in calls if isinstance(one, Call)]
            await self._inference.wait(made, batch.timeout_s)
        finally:
            for one in calls:
                if isinstance(one, Call):
                    one.answer.cancel()  # where it has not come, nobody waits for it any more
        held_bytes = share.held_bytes
        found: list[One] = []
        for call in calls:
            said = self._said(call)
            if isinstance(said.answer, Raw):
                size = len(memoryview(said.answer))
                if share.take(held_bytes + size):
                    held_bytes += size
                else:
                    said = One(503, error="no room for its answer", hint="ask for less at once")
            found.append(said)
        return found

    async def _begin(self, requests: Sequence[Raw], calls: list[Call | _Refusal]) -> None:
        """Have the calls made, into `calls`; reading them must not hold up everybody else."""
        read_bytes = sum(len(memoryview(text)) for text in requests)  # all were, to this point
        for text in requests:
            if read_bytes >= TURN_BYTES:
                read_bytes = 0
                await asyncio.sleep(0)
            calls.append(self._begun(text))
            read_bytes += len(memoryview(text))

    def _begun(self, text: Raw) -> Call | _Refusal:
        try:
            named = msgspec.json.decode(text, type=Named)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _Refusal(400, f"the request: {error}", f"send {FORM}")
        version = None if named.version is None else str(named.version)
        return self._inference.begin(named.model, version, None, memoryview(text))

    def _said(self, call: Call | _Refusal) -> One:
        if isinstance(call, _Refusal):
            return One(call.status, error=call.error, hint=call.hint)
        if call.answer.cancelled() and self._inference.ended:
            return _refused(refused(ending()))
        if not call.answer.done() or call.answer.cancelled():
            return One(504, error=NO_TIME, hint="allow more, or ask for less at once")
        reply = self._inference.reply(call)
        if reply.status != 200:
            return _refused(reply)
        if reply.json_bytes is not None:
            return One(
                400,
                error="raw outputs (binary_data) are no JSON, which a batch is answered in",
                hint="leave binary_data and binary_data_output out, or use `infer`",
            )
        return One(200, Raw(_whole(reply.pieces)))


def _batch_of(body: Buffer) -> Batch:
    """Raises RequestError."""
    try:
        read = msgspec.json.decode(body, type=_Read)
        batch = Batch(_requests.read(read.requests), read.timeout_s)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the batch of requests: {error}", f"send {FORM}") from error
    if not batch.requests:
        raise RequestError("the batch of requests is empty", f"send {FORM}")
    return batch


class _Problem(Struct):
    error: str
    hint: str


def _refused(reply: Reply) -> One:
    problem = msgspec.json.decode(_whole(reply.pieces), type=_Problem)
    return One(reply.status, UNSET, problem.error, problem.hint, reply.retry_s or UNSET)


def _whole(pieces: Sequence[Buffer]) -> bytes:
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
