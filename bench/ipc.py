"""Two ways of a body between the agent and a worker: through the socket, or in shared memory.

A real worker (agent/inference/worker.py) runs three small models: `request` takes a large tensor
and gives a small one, `answer` the reverse, `both` gives back what it got. The agent's side is that
of agent/inference/domains/flight.py: what goes into shared memory is copied there, what comes
out of it is copied for the caller. Calls are made one after the other (c1), and two at a time
(c2), as a busy instance has them. In each pair the ways run in turn, on the same bytes.

DIRECTION_SIZE_cN   calls per second in shared memory against those through the socket: above 1,
                    shared memory is faster
arena_from_kib      the smallest size from which shared memory is faster on the whole, to be
                    compared with ARENA_FROM_BYTES in agent/inference/domains/flight.py, which
                    was chosen by it

With --full there are more sizes, and more pairs.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import uvloop
from onnx import helper, numpy_helper

from agent.clock import Clock
from agent.inference import wire
from agent.inference.domains.flight import ARENA_FROM_BYTES
from agent.inference.domains.instance import ARENA_BYTES
from agent.inference.domains.process import Process, spawned
from agent.inference.domains.zygote import Zygote
from agent.inference.wire import NOT_IN_ARENA
from bench import report
from bench.models import floats

KIB = 1 << 10
SIZES = [KIB << i for i in (0, 2, 4, 5, 6, 7, 8, 10, 12)]  # 1 KiB to 4 MiB
SIZES_FULL = [KIB << i for i in range(13)]
DEPTHS = (1, 2)
PAIRS, PAIRS_FULL = 5, 25
SIDE_S = 0.03
CALLS_MIN = 4
GAIN = 1.05  # less is noise
FLOAT_BYTES = 4
DIRECTIONS = ("request", "answer", "both")
Message = wire.Answers | wire.Hello | wire.Failure


class Sizes(NamedTuple):
    """Of a call's body and its answer's, in bytes."""

    request: int
    answer: int


def sizes(direction: str, size: int) -> Sizes:
    """The direction's bodies; what is not large is one number."""
    return Sizes(
        FLOAT_BYTES if direction == "answer" else size,
        FLOAT_BYTES if direction == "request" else size,
    )


def model(direction: str, size: int) -> onnx.ModelProto:
    """One node that does next to nothing."""
    here, there = sizes(direction, size)
    constants = []
    match direction:
        case "request":  # the first number of many
            constants = [numpy_helper.from_array(np.array([0], np.int64), "first")]
            node = helper.make_node("Gather", ["x", "first"], ["y"], axis=1)
        case "answer":
            shape = np.array([1, there // FLOAT_BYTES], np.int64)
            constants = [numpy_helper.from_array(shape, "shape")]
            node = helper.make_node("Expand", ["x", "shape"], ["y"])
        case _:
            node = helper.make_node("Identity", ["x"], ["y"])
    x = floats("x", 1, here // FLOAT_BYTES)
    y = floats("y", 1, there // FLOAT_BYTES)
    graph = helper.make_graph([node], direction, [x], [y], constants)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


class Side:
    """The agent's side of one worker, asked one way or the other."""

    def __init__(self) -> None:
        self._zygote = Zygote()
        self._process: Process
        self._decoder = msgspec.msgpack.Decoder(Message)
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[bytes | memoryview]] = {}
        self._calls = 0
        self._clock = Clock()

    async def start(self, models: Mapping[str, Path]) -> None:
        """Spawn the worker, and wait until it has loaded the models."""
        self._process = await spawned(self._zygote, self._heard, lambda *_: None, ARENA_BYTES)
        loads = [
            wire.Load(name, "onnx", str(path), batching=False) for name, path in models.items()
        ]
        self._process.send(wire.Setup(loads, ["cpu"], 1))
        await self._hello

    async def end(self) -> None:
        """End the worker."""
        await self._process.end()
        await self._zygote.__aexit__()

    async def call(
        self, name: str, head: msgspec.Raw, body: bytes, answer: int, arena: bool
    ) -> None:
        """One call and its whole answer, which is checked."""
        process, places = self._process, list[int]()
        at, room = NOT_IN_ARENA, (0, 0)
        if arena and len(body) > FLOAT_BYTES:
            at = self._taken(len(body), places)
            process.arena.view[at : at + len(body)] = body
        if arena and answer > FLOAT_BYTES:
            room = self._taken(answer, places), answer
        self._calls += 1
        done = asyncio.get_running_loop().create_future()
        self._waiting[self._calls] = done
        deadline_s = self._clock.monotonic() + 60.0
        call = wire.Call(self._calls, head, len(body), deadline_s, at)
        process.send(
            wire.Batch(self._calls, name, [call], room), [] if at != NOT_IN_ARENA else [body]
        )
        found = await done
        for place in places:
            process.arena.give(place)
        if len(found) != answer:
            raise ValueError(f"{name}: an answer of {len(found)} bytes, expected {answer}")

    def _taken(self, size: int, places: list[int]) -> int:
        at = self._process.arena.take(size)
        if at is None:
            raise MemoryError("the arena is too small")
        places.append(at)
        return at

    def _heard(self, head: bytes, body: memoryview) -> None:
        message = self._decoder.decode(head)
        match message:
            case wire.Hello():
                self._hello.set_result(None)
            case wire.Failure():
                raise ChildProcessError(message.message)
            case wire.Answers():
                (answer,) = message.answers
                if answer.fault:
                    raise ValueError(answer.message)
                found: bytes | memoryview = body
                if message.at != NOT_IN_ARENA:
                    end = message.at + answer.size_bytes
                    found = bytes(self._process.arena.view[message.at : end])
                self._waiting.pop(message.id).set_result(found)


async def rate(one: Callable[[], "asyncio.Future[None]"], depth: int) -> float:
    """Calls per second, so many at a time."""
    calls, began_s = 0, time.perf_counter()

    async def lane() -> None:
        nonlocal calls
        while calls < CALLS_MIN * depth or time.perf_counter() - began_s < SIDE_S:
            await one()
            calls += 1

    await asyncio.gather(*(lane() for _ in range(depth)))
    return calls / (time.perf_counter() - began_s)


def word(size: int) -> str:
    """For a key."""
    return f"{size >> 20}mib" if size >= 1 << 20 else f"{size >> 10}kib"


async def measured(folder: Path, *, full: bool) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """Each direction, size and depth, both ways."""
    every = SIZES_FULL if full else SIZES
    paths = dict[str, Path]()
    for direction in DIRECTIONS:
        for size in every:
            path = folder / f"{direction}_{word(size)}.onnx"
            path.write_bytes(model(direction, size).SerializeToString())
            paths[path.stem] = path
    side = Side()
    await side.start(paths)
    ratios, found = dict[str, report.Ratio](), dict[str, float]()
    try:
        for size in every:
            for direction in DIRECTIONS:
                await _compare(side, direction, size, ratios, found, PAIRS_FULL if full else PAIRS)
    finally:
        await side.end()
    found["arena_from_kib"] = threshold(ratios, every) / KIB
    found["arena_from_now_kib"] = ARENA_FROM_BYTES / KIB
    return ratios, found


async def _compare(
    side: Side,
    direction: str,
    size: int,
    ratios: dict[str, report.Ratio],
    found: dict[str, float],
    pairs: int,
) -> None:
    name = f"{direction}_{word(size)}"
    here, there = sizes(direction, size)
    body = np.random.default_rng(1).random(here // FLOAT_BYTES, np.float32).tobytes()
    tensor = wire.Tensor("x", "FP32", [1, here // FLOAT_BYTES], here)
    head = msgspec.Raw(msgspec.msgpack.encode(wire.Infer([tensor])))

    def one(arena: bool) -> Callable[[], "asyncio.Future[None]"]:
        return lambda: asyncio.ensure_future(side.call(name, head, body, there, arena))

    for depth in DEPTHS:
        both = [(await rate(one(True), depth), await rate(one(False), depth)) for _ in range(pairs)]
        key = f"{name}_c{depth}"
        ratios[key] = report.Ratio.of([arena / frames for arena, frames in both])
        for way, rates in zip(("arena", "socket"), zip(*both, strict=True), strict=True):
            found[f"{key}_{way}_us"] = depth / statistics.median(rates) * 1e6


def threshold(ratios: dict[str, report.Ratio], every: list[int]) -> float:
    """The smallest size from which the geometric mean of its ratios is never below GAIN."""
    best = 0
    for size in reversed(every):
        keys = [f"{d}_{word(size)}_c{depth}" for d in DIRECTIONS for depth in DEPTHS]
        if statistics.geometric_mean(ratios[key].value for key in keys) < GAIN:
            break
        best = size
    return float(best or 2 * every[-1])


def main() -> None:
    asked = report.options(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        ratios, found = uvloop.run(measured(Path(name), full=asked.full))
    report.Report.of("ipc", ratios, found).show(as_json=asked.json)


if __name__ == "__main__":
    main()
