"""What a chunk of a job goes through: who is asked, with what, and what may come of it."""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from agent.errors import ModelError
from agent.store.jobrows import Answered, Class, Job, Made, Output
from agent.store.tensors import CHUNK_BYTES_MAX, Tensor, pack


class Request(Struct, frozen=True):
    """One call of a model. `wanted` outputs, none: all; it has no deadline.

    `again`: it was begun before, and nobody knows how far it came.
    """

    model: str
    klass: Class
    inputs: list[Tensor]
    wanted: list[str]
    again: bool = False


class Answer(Struct, frozen=True):
    """What the model gave; its label, and the execution provider that it ran on."""

    outputs: list[Tensor]
    model: str
    ep: str


class Infer(Protocol):
    """Who runs models."""

    async def infer(self, request: Request) -> Answer:
        """Run a model once; cancelled, the run is ended.

        Raises NotNow when it is too busy to begin, RequestError when the input is not what the
        model takes, ModelError when the model cannot answer it, and any other HoldfastError (a
        DomainError) when the work was lost, which may be tried again.
        """


class Place(Struct, frozen=True):
    """Where a model runs, and how many rows it takes at once.

    That many are one call, and one commit of the store: where a row takes milliseconds, more of
    them go together than a domain batches. `rows_max` None: it has no axis of rows, or its rows
    belong together; a job is one call.
    """

    domain: str
    rows_max: int | None


Where = Callable[[str], Place]  # of a model's name; raises NotThere


def made(job: Job, rows: int, answer: Answer, took_s: float) -> Made:
    """The result of a chunk of so many rows. Raises ModelError where it fits no other chunk's."""
    whole = job.chunks == 1
    form = [
        Output(one.name, one.dtype, one.shape if whole else one.shape[1:]) for one in answer.outputs
    ]
    for one in () if whole else answer.outputs:
        if one.shape[:1] != [rows]:
            raise ModelError(
                f"output {one.name!r} of {answer.model} has the shape {one.shape} for {rows} rows: "
                "a job is cut along the first axis, and put together along it",
                "declare `batching: false` for a model whose first axis is no row",
            )
    if job.form and form != job.form:
        raise ModelError(
            f"{answer.model} answered chunk {job.chunks_done + 1} in another form than the ones "
            f"before: {_said(form)} in place of {_said(job.form)}",
            "submit rows that give results of one shape",
        )
    content = pack(answer.outputs)
    if len(content) > CHUNK_BYTES_MAX:
        raise ModelError(
            f"{answer.model} answered {rows} rows with {len(content)} bytes; at most "
            f"{CHUNK_BYTES_MAX} are kept of a chunk",
            "ask for fewer outputs, or smaller ones",
        )
    return Made(content, form, Answered(answer.model, answer.ep), took_s / rows)


def _said(form: list[Output]) -> str:
    return ", ".join(f"{one.name} {one.dtype} {one.row_shape}" for one in form)
