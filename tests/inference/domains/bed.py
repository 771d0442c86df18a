"""Real domains with real children under real limits, their calls, and what may be left of them."""

import asyncio
import gc
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np

from agent import config
from agent.clock import Clock
from agent.confinement import Confinement
from agent.health.conditions import Conditions
from agent.host.cells import Cells
from agent.inference import wire
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog
from agent.inference.domains.choices import Choices
from agent.inference.domains.domain import Domain
from agent.inference.domains.domains import Domains
from agent.inference.domains.instance import Instance
from agent.inference.domains.work import Class, Work
from agent.inference.domains.zygote import Zygote
from bench import models
from tests.host.children import v1_places
from tests.inference.domains.family import workers as workers

DEADLINE_S = 90.0
LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", random.randrange(1 << 30)))
KILLS = 100 if LONG else 2
CLOCK = Clock()


def rules(model: str, **more: object) -> config.Domain:
    """A domain that comes back at once, and never rests."""
    settings = {"restart_s_min": 0.01, "restart_s_max": 0.05, "quarantine_after": 100_000}
    return msgspec.convert({"models": [model], **settings, **more}, config.Domain)


def repository(root: Path) -> Path:
    """Two models that give back what they are given, one that takes memory, one that takes time."""
    for name in ("first", "second"):
        models.write(root, name, models.identity())
    models.write(root, "hog", models.hog())
    models.write(root, "loop", models.loop())
    return root


@asynccontextmanager
async def running(
    root: Path,
    *,
    wait: bool = True,
    worker: str = "agent.inference.worker",
    **settings: config.Domain,
) -> AsyncIterator[Domains]:
    """Domains on the models in `root`, under limits, all ready."""
    parts = (Choices(root / "choices.json"), CLOCK, lambda _: None, Admission(CLOCK).prove)
    confine, zygote = Confinement(Conditions(CLOCK)), Zygote(worker)
    async with zygote, Domains(settings, Catalog(root), *parts, confine, zygote) as domains:
        task = asyncio.create_task(domains.run())
        try:
            for domain in domains.all() if wait else ():
                await within(domain.ready.wait())
            yield domains
        finally:
            task.cancel()
            await asyncio.wait([task])
    await until(lambda: swept(confine._cells), "what was still in use is gone")


def swept(cells: Cells) -> bool:
    """As the next cell would begin: whether no group is left that was in use at its end."""
    cells._sweep()
    return not cells._closed


async def within(wait: Awaitable[object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await wait


async def until(question: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not question():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


def numbers(model: str, value: float, *, once: bool = False, floats: int = 4) -> Work:
    """A call to a model of `repository` that gives `value` back."""
    body = np.full(floats, value, np.float32).tobytes()
    return _work(model, wire.Tensor("x", "FP32", [floats // 4, 4], len(body)), body, once=once)


def whole(model: str, name: str, value: int, *, once: bool = False) -> Work:
    """A call with one whole number."""
    body = np.array([value], np.int64).tobytes()
    return _work(model, wire.Tensor(name, "INT64", [1], len(body)), body, once=once)


def _work(model: str, tensor: wire.Tensor, body: bytes, *, once: bool) -> Work:
    head = msgspec.Raw(msgspec.msgpack.encode(wire.Infer([tensor])))
    now_s = CLOCK.monotonic()
    size = len(body)
    return Work(
        *(model, head, [body]),
        **{"size_bytes": size, "klass": Class.INTERACTIVE, "now_s": now_s, "timeout_s": 60.0},
        once=once,
    )


async def answered(domain: Domain, work: Work) -> bytes:
    """Make a call; the answer's bytes. Raises what it ends with."""
    domain.submit(work)
    async with asyncio.timeout(DEADLINE_S):
        return bytes((await work.done).body)


class Callers:
    """Several that call a domain again and again, and check each answer."""

    def __init__(self, domain: Domain, count: int, make: Callable[[], Work]) -> None:
        self.answers = 0
        self._domain = domain
        self._make = make
        self._under_way: set[Work] = set()
        self._tasks = [asyncio.create_task(self._call()) for _ in range(count)]

    async def _call(self) -> None:
        while True:
            await self._domain.ready.wait()
            work = self._make()
            self._domain.submit(work)
            self._under_way.add(work)
            async with asyncio.timeout(DEADLINE_S):
                answer = await work.done
            assert answer.body == work.body[0], "the answer to another call"
            self._under_way.discard(work)
            self.answers += 1

    async def settle(self) -> None:
        """Until all calls that are under way now have their answers."""
        for work in list(self._under_way):
            with suppress(Exception):  # _call raises it
                await asyncio.shield(work.done)
        for task in self._tasks:
            if task.done():
                task.result()

    async def end(self) -> None:
        """Raises what a caller met."""
        for task in self._tasks:
            task.cancel()
        for found in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(found, asyncio.CancelledError):
                assert isinstance(found, BaseException)
                raise found


def instances(domain: Domain) -> list[Instance]:
    """All that have a process, of all pools, ready or not."""
    return [one for one in domain._pools.instances if one.pid]


def send(instance: Instance, sign: signal.Signals) -> None:
    assert instance.pid is not None
    with suppress(ProcessLookupError):
        os.kill(instance.pid, sign)


def arenas() -> int:
    """Mappings of shared memory with workers."""
    return Path("/proc/self/maps").read_text().count("memfd:holdfast-arena")


def descriptors() -> list[str]:
    """Open ones that a worker's life could leave."""
    kinds = ("socket", "pipe", "memfd", "pidfd")
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(fd.readlink())
            if any(kind in target for kind in kinds):
                found.append(f"{fd.name} {target}")
    return found


def groups(pid: int) -> list[Path]:
    """Control groups of an agent."""
    return [g for base in set(v1_places().values()) for g in base.glob(f"holdfast-{pid}-*")]


def told(left: list[Path]) -> str:
    """Who is still in them."""
    rows = [f"{one.parent} {one.read_text().split()}" for g in left for one in g.rglob("*.procs")]
    return "\n".join(rows)


@contextmanager
def nothing_left() -> Iterator[None]:
    """After the block there is no more of anything than before, and nobody had to collect it."""
    gc.collect()
    held, mapped = descriptors(), arenas()
    gc.disable()
    try:
        yield
        assert workers() == []
        assert arenas() == mapped
        assert len(descriptors()) <= len(held), (held, descriptors())
        assert groups(os.getpid()) == [], told(groups(os.getpid()))
    finally:
        gc.enable()
