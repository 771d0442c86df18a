"""Nothing is left of a worker: no process, no shared memory, no descriptor, wherever it is killed.

HOLDFAST_LONG=1 kills more, HOLDFAST_SEED chooses when.
"""

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.config import Instances
from agent.errors import BusyError, CallLost
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.flight import ARENA_FROM_BYTES
from agent.inference.domains.instance import ARENA_BYTES
from agent.inference.domains.work import Work
from agent.inference.domains.zygote import Zygote
from agent.inference.wire import Infer, Tensor
from bench.models import identity, write
from bench.unconfined import Unconfined
from tests.inference.domains.family import workers

DEADLINE_S = 120.0
FLOATS = ARENA_FROM_BYTES  # four times what goes through shared memory
KILLS = 100 if os.environ.get("HOLDFAST_LONG") == "1" else 12
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
SIGNALS = (signal.SIGKILL, signal.SIGSEGV)


class Held:
    """What this process holds."""

    def __init__(self) -> None:
        own = psutil.Process()
        self.descriptors = own.num_fds()
        self.children = len(workers())
        self.mapped = Path("/proc/self/maps").read_text().count("holdfast-arena")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Held({vars(self)})"

    __hash__ = None  # type: ignore[assignment]


class Crowd:
    """Callers who ask without end, and check each answer."""

    def __init__(self, domain: Domain, clock: Clock) -> None:
        self.answers = self.lost = 0
        self._domain = domain
        self._clock = clock

    async def ask_on(self, number: int) -> None:
        body = bytes([number]) * 4 * FLOATS
        tensor = Tensor("x", "FP32", [1, FLOATS], len(body))
        head = msgspec.Raw(msgspec.msgpack.encode(Infer([tensor])))
        parts = {"size_bytes": len(body), "timeout_s": DEADLINE_S, "klass": self._domain.klass}
        while True:
            try:
                await self._domain.ready.wait()
                now_s = self._clock.monotonic()
                work = Work("identity", head, [body], now_s=now_s, **parts)
                self._domain.submit(work)
                answer = await work.done
                assert bytes(answer.body) == body, "somebody else's"
                self.answers += 1
            except CallLost:
                self.lost += 1
            except BusyError:
                await asyncio.sleep(0.001)


async def _killed(domain: Domain, chance: random.Random) -> None:
    """Kill a worker, at any time of its life."""
    await asyncio.sleep(chance.choice([0.0, chance.uniform(0.0, 0.3)]))
    while not (pid := domain.pid):
        await asyncio.sleep(0)
    with suppress(ProcessLookupError):
        os.kill(pid, chance.choice(SIGNALS))


@pytest.mark.parametrize("spare", [0, 1])
async def test_nothing_is_left_of_workers_that_were_killed(tmp_path: Path, spare: int) -> None:
    write(tmp_path, "identity", identity(size=FLOATS))
    model, clock, chance = Catalog(tmp_path).newest("identity"), Clock(), random.Random(SEED)
    rules = Settings(
        models=["identity"],
        restart_s_min=0.01,
        restart_s_max=0.02,
        quarantine_after=100_000,
        instances=Instances(min=1, max=1, spare=spare),
    )
    before = Held()
    zygote = Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), zygote, 1)
    parts = Parts(lambda: {"identity": model}, *ways)
    async with asyncio.timeout(DEADLINE_S):
        async with zygote, Domain("it", rules, parts) as domain:
            running = asyncio.create_task(domain.run())
            await domain.ready.wait()
            crowd = Crowd(domain, clock)
            asking = [asyncio.create_task(crowd.ask_on(i + 1)) for i in range(6)]
            for _ in range(KILLS):
                await _killed(domain, chance)
            await domain.ready.wait()
            had = crowd.answers
            while crowd.answers < had + 20:
                await asyncio.sleep(0.01)
            for task in asking:
                task.cancel()
            running.cancel()
            await asyncio.wait([*asking, running])
        while Held() != before:  # a transport is closed in the loop's next turn
            await asyncio.sleep(0.05)
    assert 6 * 4 * FLOATS < ARENA_BYTES, "else much would go through the socket"


async def test_what_has_no_room_goes_through_the_socket(tmp_path: Path) -> None:
    """Ten callers at once, each with a body of a fifth of the arena."""
    size = ARENA_BYTES // 20
    write(tmp_path, "identity", identity(size=size))
    model, clock = Catalog(tmp_path).newest("identity"), Clock()
    rules = Settings(models=["identity"], batch_max=10, queue_max=100)
    zygote = Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), zygote, 1)
    parts = Parts(lambda: {"identity": model}, *ways)
    tensor = Tensor("x", "FP32", [1, size], 4 * size)
    head = msgspec.Raw(msgspec.msgpack.encode(Infer([tensor])))
    async with asyncio.timeout(DEADLINE_S):
        async with zygote, Domain("it", rules, parts) as domain:
            running = asyncio.create_task(domain.run())
            await domain.ready.wait()
            works = [
                Work(
                    "identity",
                    head,
                    [bytes([i + 1]) * 4 * size],
                    size_bytes=4 * size,
                    klass=domain.klass,
                    now_s=clock.monotonic(),
                    timeout_s=DEADLINE_S,
                )
                for i in range(10)
            ]
            for work in works:
                domain.submit(work)
            for i, work in enumerate(works):
                answer = await work.done
                assert bytes(answer.body) == bytes([i + 1]) * 4 * size
            running.cancel()
            await asyncio.wait([running])
