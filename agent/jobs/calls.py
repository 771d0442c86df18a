"""Jobs and the scheduler: where a model runs, what a chunk asks, what a body holds.

A chunk is larger than a batch: its commit is worth some calls. They are made one after the other,
each of a few rows, of fewer where these take long, so that what is more urgent passes between them.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from agent.errors import BusyError, ModelError, NotNow, NotThere, RunError
from agent.inference import oip, oip_asked, wire
from agent.inference.domains.domain import Domain
from agent.inference.domains.work import Class, Result
from agent.inference.scheduler import Request as Call
from agent.jobs.infer import Answer, Place, Request
from agent.store.tensors import Tensor, rows_of, split, unpack

CHUNK_ROWS = 32  # of a model that batches
CALL_ROWS = 8


class Scheduler(Protocol):
    """Who makes the calls."""

    async def infer(self, request: Call) -> Result: ...  # noqa: D102


class Domains(Protocol):
    """Where the models are."""

    def serving(self, model: str) -> Domain | None: ...  # noqa: D102


class Calls:
    """What agent/jobs/infer.py asks for."""

    def __init__(self, scheduler: Scheduler, domains: Domains) -> None:
        self._scheduler = scheduler
        self._domains = domains

    def where(self, model: str) -> Place:
        """Where it runs. Raises NotThere."""
        domain = self._domains.serving(model)
        if domain is None:
            raise NotThere(f"no domain has the model {model!r}", "holdfast models ls")
        loaded, known = domain.loaded(model), domain.models.get(model)
        cut = loaded is not None and loaded.batching and not (known and known.manifest.state)
        return Place(domain.name, CHUNK_ROWS if cut else None)

    async def infer(self, request: Request) -> Answer:
        """Make a chunk's calls. Raises as infer.py says."""
        rows = rows_of(request.inputs) if self.where(request.model).rows_max else None
        most = self._rows_max(request)
        if rows is None or most is None or rows <= most:
            return await self._call(request, request.inputs)
        parts = [unpack(part.content) for part in split(request.inputs, most)]
        return joined([await self._call(request, inputs) for inputs in parts])

    def _rows_max(self, request: Request) -> int | None:
        """Of one call; None: all of the chunk's, since it must not be begun twice.

        Raises ModelError where it was.
        """
        domain = self._domains.serving(request.model)
        known = domain.models.get(request.model) if domain else None
        if domain is None or known is None:  # it is not ready: the call itself says so
            return None
        if known.manifest.idempotent:
            return min(CALL_ROWS, domain.rows_in_time(request.model) or CALL_ROWS)
        if request.again:
            raise ModelError(
                f"a call to {known.label} was begun and its answer is lost: it must not be made "
                "twice",
                "see what came of it, and submit what is left",
            )
        return None

    async def _call(self, request: Request, inputs: list[Tensor]) -> Answer:
        heads = [wire.Tensor(one.name, one.dtype, one.shape, one.data.nbytes) for one in inputs]
        call = Call(
            request.model,
            msgspec.Raw(msgspec.msgpack.encode(wire.Infer(heads, request.wanted))),
            [one.data for one in inputs],
            sum(one.size_bytes for one in heads),
            oip.rows_of(heads[0].shape) if heads else 1,
            Class[request.klass.upper()],
            patient=True,
        )
        try:
            result = await self._scheduler.infer(call)
        except BusyError as error:
            raise NotNow(str(error), error.hint) from error
        except RunError as error:
            raise ModelError(str(error), error.hint) from error
        return answered(result)


def answered(result: Result) -> Answer:
    """A result, its outputs apart. Raises ModelError for what is none."""
    try:
        heads = msgspec.msgpack.decode(result.head, type=wire.Inferred).outputs
    except (msgspec.MsgspecError, ValueError) as error:  # its worker lost its senses
        raise ModelError(
            f"{result.model}: its process gave an answer that makes no sense: {error}",
            "submit the job again; if it is so again, send it to those who made the model",
        ) from error
    outputs: list[Tensor] = []
    at = 0
    for one in heads:
        data = result.body[at : at + one.size_bytes]
        outputs.append(Tensor(one.name, one.dtype, one.shape, data))
        at += one.size_bytes
    return Answer(outputs, result.model, result.ep)


def joined(answers: list[Answer]) -> Answer:
    """The answers to the parts of a chunk, row after row.

    Raises ModelError; NotNow where they are not of one version: a chunk is stamped with one.
    """
    first = answers[0]
    if others := {one.model for one in answers} - {first.model}:
        raise NotNow(
            f"{', '.join(sorted(others))} took the place of {first.model} within a chunk",
            "it is made again, by one of them",
        )
    outputs: list[Tensor] = []
    for i, one in enumerate(first.outputs):
        parts = [answer.outputs[i] for answer in answers]
        if any(not part.shape or part.shape[1:] != one.shape[1:] for part in parts):
            raise ModelError(
                f"output {one.name!r} of {first.model} has not the same shape for all rows",
                "declare `batching: false` for a model whose rows belong together",
            )
        shape = [sum(part.shape[0] for part in parts), *one.shape[1:]]
        outputs.append(
            Tensor(one.name, one.dtype, shape, memoryview(b"".join(part.data for part in parts)))
        )
    return Answer(outputs, first.model, ", ".join(sorted({one.ep for one in answers})))


def parsed(headers: Mapping[str, str], body: wire.Buffer) -> tuple[list[Tensor], list[str]]:
    """The inputs in a body, and the outputs that it wants. Raises RequestError."""
    found, wanted = oip.tensors(headers.get(oip_asked.HEADER), body)
    inputs = [Tensor(one.name, one.dtype, one.shape, memoryview(data)) for one, data in found]
    return inputs, wanted
