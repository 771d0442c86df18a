"""A job's result as an answer of the Open Inference Protocol v2, made chunk by chunk.

JSON, or the protocol's binary extension: a JSON header, and behind it the data of each output. What
a job has in many chunks is put together along the first axis; no more than one is in memory.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from agent.errors import NotNow
from agent.inference import oip
from agent.store.jobrows import Job
from agent.store.jobshown import AnsweredShown
from agent.store.tensors import BYTES, WIDTHS, Tensor, spans, unpack

Chunk = Callable[[int], Awaitable[bytes]]  # the packed outputs of a chunk
_KINDS = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": ""}
_ASK_BINARY = "ask for it with ?binary_data_output=true"


class ResultShown(Struct, frozen=True):
    """The answer of the model to a whole job."""

    model_name: str
    id: str
    parameters: AnsweredShown
    outputs: list[oip.Made]


class Result:
    """One job that is done."""

    def __init__(self, job: Job, chunk: Chunk) -> None:
        self._job = job
        self._chunk = chunk

    async def json(self) -> AsyncGenerator[bytes, None]:
        """The answer as JSON. Raises NotNow, before anything, for what JSON cannot say."""
        for one in self._job.form:
            if one.dtype == "BF16":
                raise NotNow(
                    f"output {one.name!r} is BF16, which JSON has no form for", _ASK_BINARY
                )
            if one.dtype == BYTES:
                await self._measure(one.name)
        yield msgspec.json.encode(self._head())[:-1] + b',"outputs":['
        for number, shape in enumerate(self._shapes()):
            one = self._job.form[number]
            head = {"name": one.name, "datatype": one.dtype, "shape": shape}
            yield b"," * (number > 0) + msgspec.json.encode(head)[:-1] + b',"data":['
            async for piece in self._values(number):
                yield piece
            yield b"]}"
        yield b"]}"

    async def binary(self) -> tuple[int, AsyncGenerator[bytes, None]]:
        """How long the JSON header is, and the whole body."""
        outputs = []
        for number, shape in enumerate(self._shapes()):
            one = self._job.form[number]
            if one.dtype == BYTES:
                size = await self._measure(one.name, text=False)
            else:
                size = math.prod(shape) * WIDTHS[one.dtype]
            about = {"name": one.name, "datatype": one.dtype, "shape": shape}
            outputs.append({**about, "parameters": {"binary_data_size": size}})
        header = msgspec.json.encode({**self._head(), "outputs": outputs})
        return len(header), self._body(header)

    async def _body(self, header: bytes) -> AsyncGenerator[bytes, None]:
        yield header
        for number in range(len(self._job.form)):
            async for one in self._tensors(number):
                yield bytes(one.data)

    def _head(self) -> dict[str, Any]:
        by = self._job.answered[-1]
        said: AnsweredShown = {"model": by.model, "ep": by.ep}
        return {"model_name": self._job.model, "id": self._job.id, "parameters": said}

    def _shapes(self) -> list[list[int]]:
        """Of the whole outputs; a job of one chunk has them as they came."""
        if self._job.chunks == 1:
            return [one.row_shape for one in self._job.form]
        return [[self._job.rows, *one.row_shape] for one in self._job.form]

    async def _tensors(self, number: int) -> AsyncIterator[Tensor]:
        """An output, chunk by chunk."""
        for chunk in range(self._job.chunks):
            yield unpack(await self._chunk(chunk))[number]

    async def _values(self, number: int) -> AsyncGenerator[bytes, None]:
        """The numbers or strings of an output, with commas between them."""
        between = b""
        async for one in self._tensors(number):
            if values := msgspec.json.encode(_values(one))[1:-1]:
                yield between + values
                between = b","

    async def _measure(self, name: str, *, text: bool = True) -> int:
        """The bytes of an output of BYTES; as text, it has to be some. Raises NotNow."""
        names = [one.name for one in self._job.form]
        size = 0
        async for one in self._tensors(names.index(name)):
            size += len(one.data)
            try:
                if text:
                    _values(one)
            except UnicodeDecodeError as error:
                raise NotNow(f"output {name!r} is no text: {error}", _ASK_BINARY) from error
        return size


def _values(one: Tensor) -> list[Any]:
    """A tensor's elements in one flat list."""
    if one.dtype == BYTES:
        return [str(element, "utf-8") for element in spans(one)]
    kind = _KINDS.get(one.dtype) or f"<{one.dtype[0].lower()}{WIDTHS[one.dtype]}"
    found: list[Any] = np.frombuffer(one.data, kind).tolist()
    return found
