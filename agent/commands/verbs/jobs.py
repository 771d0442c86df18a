"""Work for a model, ordered from afar: a durable job under the command's own id."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from agent.commands.verb import Call, Verb, again
from agent.forms import ModelName

Class = Literal["realtime", "interactive", "batch"]
LANE = "jobs"


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """An input, as the Open Inference Protocol has it: its values in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """The model, its inputs, and how urgent it is; `outputs` that are wanted, none: all."""

    model: ModelName
    inputs: Annotated[list[Tensor], Meta(min_length=1, max_length=64)]
    klass: Class = "batch"
    outputs: list[str] = []


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """The job's id."""

    job: Annotated[str, Meta(min_length=1, max_length=128)]


class JobVerbs:
    """`job.run` answers once the job is kept: it outlasts the command (`job.show`)."""

    def __init__(
        self,
        submit: Callable[[str, Run], Awaitable[Any]],
        show: Callable[[str], Awaitable[Any]],
        cancel: Callable[[str], Awaitable[Any]],
    ) -> None:
        """`submit` takes the command's id; the same id is the same job."""
        self._submit = submit
        self._show = show
        self._cancel = cancel

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("job.run", "Have a model work, in its own time.", Run, self._run, "infer", LANE),
            again("job.show", "How far a job is.", Which, self._look, "read", LANE),
            Verb("job.cancel", "End a job that has not ended.", Which, self._end, "infer", LANE),
        ]

    async def _run(self, args: Run, call: Call) -> Any:
        return await self._submit(call.id, args)

    async def _look(self, args: Which, _: Call) -> Any:
        return await self._show(args.job)

    async def _end(self, args: Which, _: Call) -> Any:
        return await self._cancel(args.job)
