"""A queue of jobs on a real store, before models that are real numpy."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent import config
from agent.clock import Clock
from agent.errors import NotThere
from agent.jobs.infer import Answer, Place, Request
from agent.jobs.queue import Queue
from agent.jobs.runner import Pauses, Runner
from agent.store.arrivals import Limits
from agent.store.store import Store
from agent.store.tensors import Tensor, unpack
from tests.outside import DEADLINE_S

PLACES = {
    "double": Place("cpu", 4),
    "other": Place("cpu", 4),
    "apart": Place("gpu", 4),
    "whole": Place("cpu", None),
}
PAUSES = Pauses(first_s=0.001, last_s=0.01, look_s=0.05)


def where(model: str) -> Place:
    if model not in PLACES:
        raise NotThere(f"no model {model!r}", "see `holdfast models ls`")
    return PLACES[model]


def tensor(name: str, numbers: NDArray[Any]) -> Tensor:
    kind = {"f": "FP", "i": "INT", "u": "UINT"}[numbers.dtype.kind]
    dtype = f"{kind}{8 * numbers.dtype.itemsize}"
    return Tensor(name, dtype, list(numbers.shape), memoryview(numbers.tobytes()))


def rows(job: int, count: int) -> NDArray[np.float32]:
    """Input that says whose it is: the job's number, and the row's."""
    return np.stack([np.full(count, job), np.arange(count)], 1).astype(np.float32)


def computed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x * 2 + 1


class Models:
    """Computes y = 2x + 1, and its row sums; what else befalls a call, a test says."""

    def __init__(self) -> None:
        self.calls: list[Request] = []
        self.seen: Counter[tuple[int, int]] = Counter()  # job and first row
        self.most_at_once: Counter[str] = Counter()
        self.before: Callable[[NDArray[np.float32]], Any] = lambda _: None
        self.go = asyncio.Event()
        self.go.set()
        self._now: Counter[str] = Counter()

    async def infer(self, request: Request) -> Answer:
        domain = where(request.model).domain
        self._now[domain] += 1
        self.most_at_once[domain] = max(self.most_at_once[domain], self._now[domain])
        try:
            self.calls.append(request)
            (one,) = request.inputs
            x = np.frombuffer(one.data, np.float32).reshape(one.shape)
            await self.go.wait()
            self.before(x)
            await asyncio.sleep(0)
            self.seen[int(x[0, 0]), int(x[0, 1])] += 1
            y = computed(x)
            found = [tensor("y", y), tensor("sum", y.sum(axis=1))]
            wanted = [out for out in found if not request.wanted or out.name in request.wanted]
            return Answer(wanted, f"{request.model}/1@0123", "cpu")
        finally:
            self._now[domain] -= 1


class Desk:
    """Open with `async with`: the store, the runner on it and its queue."""

    def __init__(
        self, folder: Path, models: Models | None = None, clock: Clock | None = None, **limits: Any
    ) -> None:
        self.clock = clock or Clock()
        self.models = models or Models()
        settings = config.Store(path=str(folder / "s.db"))
        self.store = Store(settings, self.clock, Limits(**limits))
        self.jobs = self.store.jobs
        self.runner = Runner(self.jobs, self.models, where, self.clock, PAUSES)
        self.queue = Queue(self.jobs, self.runner, where)
        self.running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Desk":
        await self.store.__aenter__()
        self.start()
        return self

    def start(self) -> None:
        self.running = asyncio.create_task(self.runner.run())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self.store.__aexit__()

    async def submit(self, job: int, count: int, model: str = "double", **more: Any) -> str:
        told, _ = await self.queue.submit(
            model,
            more.get("klass", "batch"),
            more.get("name"),
            [tensor("x", rows(job, count))],
            more.get("wanted", []),
        )
        return str(told["id"])

    async def until(self, question: Callable[[], Any], what: str) -> Any:
        """Ask until the answer is true; a runner that has ended says why."""
        async with asyncio.timeout(DEADLINE_S):
            while not (answer := await question()):
                assert not self.running.done() or self.running.result() is None, what
                await asyncio.sleep(0.002)
        return answer

    async def ended(self, name: str, state: str = "done") -> dict[str, Any]:
        async def over() -> Any:
            told = await self.queue.show(name)
            return told if told["ended_us"] is not None else None

        told = await self.until(over, f"{name} ends")
        assert told["state"] == state, told
        return told

    async def result(self, name: str, output: int = 0) -> NDArray[np.float32]:
        job = await self.jobs.get(name)
        parts = [unpack(await self.jobs.chunk(name, n))[output] for n in range(job.chunks)]
        found = [np.frombuffer(one.data, np.float32).reshape(one.shape) for one in parts]
        return np.concatenate(found)
