"""Two real domains that take turns: here it is the processor whose time is shared out."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import psutil
import pytest

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import CallLost, LateError
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.lease import Lease, Seat
from agent.inference.domains.work import Work
from agent.inference.domains.zygote import Zygote
from agent.inference.wire import Infer, Tensor
from bench.models import loop, write
from bench.unconfined import Unconfined

DEADLINE_S = 60.0
TURNS = 400  # of the model: some milliseconds
SHARES = {"llm": 0.7, "image": 0.3}
HEAD = msgspec.Raw(msgspec.msgpack.encode(Infer([Tensor("turns", "INT64", [1], 8)])))


class Pair:
    """Two domains at one lease, and somebody who asks them without end."""

    def __init__(self, domains: dict[str, Domain], lease: Lease, clock: Clock) -> None:
        self.domains = domains
        self.lease = lease
        self._clock = clock

    def work(self, name: str, turns: int = TURNS) -> Work:
        return Work(
            "loop",
            HEAD,
            [np.array([turns], np.int64).tobytes()],
            size_bytes=8,
            klass=self.domains[name].klass,
            now_s=self._clock.monotonic(),
            timeout_s=DEADLINE_S,
        )

    async def ask(self, name: str, turns: int = TURNS) -> None:
        domain = self.domains[name]
        await domain.ready.wait()
        work = self.work(name, turns)
        domain.submit(work)
        await work.done

    async def ask_on(self, name: str) -> None:
        while True:
            with suppress(CallLost, LateError):
                await self.ask(name)

    def computed_s(self, name: str) -> float:
        found = self.domains[name].figures.models.get("loop")
        return found.compute_s.sum if found else 0.0

    def seats(self) -> list[Seat]:
        return self.lease._seats


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    write(tmp_path, "loop", loop())
    clock = Clock()
    lease = Lease(clock, frozenset({"CPUExecutionProvider"}))
    async with AsyncExitStack() as stack:
        domains = {}
        for name, klass in (("llm", "realtime"), ("image", "batch")):
            settings = Settings(
                models=["loop"],
                class_=klass,
                gpu_share=SHARES[name],
                restart_s_min=0.01,
                call_timeout_s=DEADLINE_S,
            )
            domains[name] = await stack.enter_async_context(_ready(name, settings, tmp_path, lease))
        yield Pair(domains, lease, clock)


@asynccontextmanager
async def _ready(name: str, settings: Settings, root: Path, lease: Lease) -> AsyncIterator[Domain]:
    model, clock = Catalog(root).newest("loop"), Clock()
    zygote = Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), zygote, 1, lease)
    async with zygote, Domain(name, settings, Parts(lambda: {"loop": model}, *ways)) as domain:
        task = asyncio.create_task(domain.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await domain.ready.wait()
            yield domain
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_saturated_each_computes_for_its_share(pair: Pair) -> None:
    async with asyncio.timeout(DEADLINE_S):
        asking = [asyncio.create_task(pair.ask_on(name)) for name in SHARES for _ in range(4)]
        while sum(map(pair.computed_s, SHARES)) < 1.5:  # urgency has had its overdraft
            await asyncio.sleep(0.01)
        before = {name: pair.computed_s(name) for name in SHARES}
        while sum(map(pair.computed_s, SHARES)) < 5.0:
            await asyncio.sleep(0.01)
        took_s = {name: pair.computed_s(name) - before[name] for name in SHARES}
        for task in asking:
            task.cancel()
    share = took_s["llm"] / sum(took_s.values())
    assert 0.6 < share < 0.8, took_s


async def test_one_alone_has_all_of_it(pair: Pair) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await pair.ask("llm")
        asking = [asyncio.create_task(pair.ask_on("image")) for _ in range(4)]
        while pair.computed_s("image") < 1.0:
            await asyncio.sleep(0.01)
        for task in asking:
            task.cancel()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_a_turn_ends_with_its_process(pair: Pair, sign: signal.Signals) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(pair.ask("llm"), pair.ask("image"))
        endless = pair.work("image", 1 << 40)
        pair.domains["image"].submit(endless)
        image = next(one for one in pair.seats() if one.weight == SHARES["image"])
        for death in range(2):  # it is tried twice
            while not (image.turns and endless.holder and endless.tries == death):
                await asyncio.sleep(0.01)
            os.kill(endless.pid, sign)
            while psutil.pid_exists(endless.pid):
                await asyncio.sleep(0.01)
        with pytest.raises(CallLost):
            await endless.done
        await asyncio.gather(pair.ask("llm"), pair.ask("image"))
    assert not any(one.turns for one in pair.seats())


async def test_a_stopped_process_keeps_the_other_domain_for_the_quantum_alone(pair: Pair) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(pair.ask("llm"), pair.ask("image"))
        held = pair.work("image", 1 << 40)
        pair.domains["image"].submit(held)
        while not any(one.turns for one in pair.seats()):
            await asyncio.sleep(0.01)
        pid = cast(int, pair.domains["image"].pid)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(5):
            await pair.ask("llm")  # though the other's turn lasts on
        assert any(one.turns for one in pair.seats())
        pair.domains["image"].restart()
