"""What a version of a model has to show before it serves: in its own fresh process, by itself.

    form       inputs and outputs are those that its model.yaml declares, if it does
    golden     golden inputs give their outputs, within the tolerance, and finite ones; without
               golden inputs, zeros give finite outputs
    latency    the median of its runs is within the budget

That it loads, and that its warm-up passes, the process itself has shown by then.
"""

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.clock import Clock
from agent.errors import DomainError, ModelError, RequestError
from agent.inference import wire
from agent.inference.catalog import Golden, Model, golden
from agent.inference.catalog.golden import ARRAYS_BYTES_MAX, DTYPES
from agent.inference.domains.work import Class, Result, Work
from agent.inference.engines.tensors import finite

Array = NDArray[Any]
Ask = Callable[[Work], Awaitable[Result]]
HINT = "it failed on what it is tried with: send it to those who made it"
ZEROS_HINT = "where zeros are nothing for it, give it golden inputs in model.yaml (docs/models.md)"
RUNS = 5  # of each input, for the latency
NUMPY = {name: dtype for dtype, name in DTYPES.items()}


class Admission:
    """Judges versions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def prove(self, model: Model, loaded: wire.Loaded, ask: Ask) -> None:
        """Return, or raise ModelError with what is wrong with this version."""
        try:
            if model.manifest.engine == "onnx":
                await self._onnx(model, loaded, ask)
            else:
                await self._sound(model, loaded, ask)
        except (DomainError, RequestError) as error:
            zeros = model.manifest.engine == "onnx" and not model.manifest.golden
            hint = error.hint or (ZEROS_HINT if zeros else HINT)
            raise ModelError(f"{model.label} is not admitted: {error}", hint) from error

    async def _onnx(self, model: Model, loaded: wire.Loaded, ask: Ask) -> None:
        _form(model, "inputs", loaded.inputs)
        _form(model, "outputs", loaded.outputs)
        pairs = await asyncio.to_thread(golden, model)  # large files, perhaps
        took_s = list[float]()
        for pair in pairs:
            took_s += await self._judged(model, pair, loaded, ask)
        if not pairs:
            took_s += await self._zeros(model, loaded, ask)
        budget = model.manifest.latency_ms_max
        median_ms = statistics.median(took_s) * 1000 if took_s else 0.0
        if budget is not None and median_ms > budget:
            raise ModelError(
                f"{model.label} is not admitted: it takes {median_ms:.1f} ms (median of "
                f"{len(took_s)} runs), and its model.yaml allows {budget:g}",
                "make it faster, run it on another device, or raise latency_ms_max",
            )

    async def _judged(
        self, model: Model, pair: Golden, loaded: wire.Loaded, ask: Ask
    ) -> list[float]:
        works = self._works(model, pair.inputs)
        for work in works:
            pair.judge(arrays(await ask(work)))
        return [work.times.ended_s - work.times.began_s for work in works]

    async def _zeros(self, model: Model, loaded: wire.Loaded, ask: Ask) -> list[float]:
        if any(one.dtype == "BYTES" for one in loaded.inputs):
            return []
        works = self._works(model, smallest(model, loaded))
        for work in works:
            for name, found in arrays(await ask(work)).items():
                if not finite(found):
                    raise ModelError(
                        f"{model.label} is not admitted: from zeros, its output {name} is not "
                        "finite",
                        "where that is right, give it golden inputs that are none",
                    )
        return [work.times.ended_s - work.times.began_s for work in works]

    async def _sound(self, model: Model, loaded: wire.Loaded, ask: Ask) -> None:
        """A second of silence, and one of full scale noise."""
        rate = int(model.manifest.options.get("rate_hz", 16_000))
        noise = np.random.default_rng(1).integers(-32768, 32767, rate, np.int16).tobytes()
        for pcm in (bytes(2 * rate), noise):
            found = speech(await ask(self._made(model, *sounded(loaded, pcm))))
            if not ((found >= 0) & (found <= 1)).all():
                raise ModelError(
                    f"{model.label} is not admitted: it gives what is no probability of speech",
                    "send it to those who made it",
                )

    def _works(self, model: Model, inputs: dict[str, Array]) -> list[Work]:
        """The same call several times."""
        head, body = encoded(inputs)
        return [self._made(model, head, body) for _ in range(RUNS)]

    def _made(self, model: Model, head: bytes, body: Sequence[wire.Buffer]) -> Work:
        return Work(
            model.manifest.name,
            msgspec.Raw(head),
            body,
            size_bytes=sum(len(one) for one in body),
            klass=Class.BATCH,
            now_s=self._clock.monotonic(),
            timeout_s=math.inf,  # the domain's `call_timeout_s` ends what takes too long
            once=True,
        )


def smallest(model: Model, loaded: wire.Loaded) -> dict[str, Array]:
    """Zeros, one for each open dimension. Raises ModelError for more than a call may bring."""
    shapes = {one.name: [max(1, size) for size in one.shape] for one in loaded.inputs}
    dtypes = {one.name: np.dtype(NUMPY[one.dtype]) for one in loaded.inputs}
    size = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
    if size > ARRAYS_BYTES_MAX:
        raise ModelError(
            f"{model.label} is not admitted: its inputs take {size:,} bytes at least, above "
            f"{ARRAYS_BYTES_MAX:,}",
            "nobody could send them: export it with smaller inputs",
        )
    return {name: np.zeros(shape, dtypes[name]) for name, shape in shapes.items()}


def encoded(inputs: dict[str, Array]) -> tuple[bytes, list[wire.Buffer]]:
    """A call with these inputs: its head and its body, as an ONNX engine takes them."""
    tensors, body = list[wire.Tensor](), list[wire.Buffer]()
    for name, found in inputs.items():
        raw = raw_bytes(found)
        dtype = DTYPES.get(found.dtype, "BYTES")
        tensors.append(wire.Tensor(name, dtype, list(found.shape), len(raw)))
        body.append(raw)
    return msgspec.msgpack.encode(wire.Infer(tensors)), body


def sounded(loaded: wire.Loaded, pcm: bytes) -> tuple[bytes, list[wire.Buffer]]:
    """A call with a whole stream of 16-bit sound, as a speech engine takes it."""
    head = msgspec.msgpack.encode(wire.Part(len(pcm) // 2, True))
    return head, [pcm, bytes(4 * loaded.memory_size)]


def speech(result: Result) -> Array:
    """The probabilities that a speech engine gave, one for each hop."""
    heard = msgspec.msgpack.decode(result.head, type=wire.Heard)
    return np.frombuffer(result.body[2 * heard.samples :], np.float32, heard.hops)


def arrays(result: Result) -> dict[str, Array]:
    """The outputs of an ONNX model."""
    found, at = dict[str, Array](), 0
    for one in msgspec.msgpack.decode(result.head, type=wire.Inferred).outputs:
        piece = result.body[at : at + one.size_bytes]
        at += one.size_bytes
        if one.dtype == "BYTES":
            found[one.name] = np.array(_strings(piece)).reshape(one.shape)
        else:
            found[one.name] = np.frombuffer(piece, NUMPY[one.dtype]).reshape(one.shape)
    return found


def raw_bytes(found: Array) -> bytes:
    """A tensor as it is sent."""
    if found.dtype.kind not in "SUO":
        return np.ascontiguousarray(found).tobytes()
    texts = [one if isinstance(one, bytes) else str(one).encode() for one in found.ravel()]
    return b"".join(len(one).to_bytes(4, "little") + one for one in texts)


def _strings(piece: memoryview) -> list[str]:
    found, at = list[str](), 0
    while at < len(piece):
        size = int.from_bytes(piece[at : at + 4], "little")
        found.append(str(piece[at + 4 : at + 4 + size], "utf-8"))
        at += 4 + size
    return found


def _form(model: Model, which: str, found: Sequence[wire.Tensor]) -> None:
    declared = getattr(model.manifest, which)
    if not declared:
        return
    there = {one.name: (one.dtype, one.shape) for one in found}
    for one in declared:
        if there.get(one.name) != (one.dtype, list(one.shape)):
            raise ModelError(
                f"{model.label} is not admitted: its model.yaml declares in {which} {one.name} "
                f"{one.dtype} {list(one.shape)}, the file has {there.get(one.name, 'no such')}",
                "mend model.yaml, or the model",
            )
