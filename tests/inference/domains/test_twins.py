"""A domain that is changed while its models are on the CPU: nobody loses a call, nor waits."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import ModelError
from agent.inference.domains.twinned import Twinned
from tests.inference.domains.bed import workers
from tests.inference.domains.rig import Answer, Rig, put, until
from tests.inference.domains.test_twinned import (
    CPU,
    CUDA,
    GPU,
    Load,
    Played,
    golden,
    one,
    twinned,
)

LATER = {"batch_max": 1, "probe_s_min": 60.0, "probe_s_max": 60.0}
OTHER = {**LATER, "gpu_memory_bytes_max": 1 << 30}  # for it the accelerator is tried anew


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setenv("PYTHONPATH", str(GPU))
    monkeypatch.setenv("PLAYED_GPU", str(tmp_path / "gpu.json"))
    return Played(tmp_path / "gpu.json")


@asynccontextmanager
async def stuck(
    tmp_path: Path, gpu: Played, **settings: Any
) -> AsyncIterator[tuple[Rig, Twinned, list[asyncio.Task[Answer]]]]:
    """Twelve calls are with the twin; its process has begun one or two, and will not end them.

    Then all is well.
    """
    async with one(tmp_path, **settings) as (rig, d):
        gpu.has(sticky=True)
        assert (await rig.ask()).ep == CPU
        begun = tmp_path / "begun"
        gpu.has(cpu_slow_s=1000.0, tells=str(begun))
        asks = [asyncio.create_task(rig.ask()) for _ in range(12)]
        await until(lambda: d.waiting >= 10 and begun.exists(), "they are with the twin")
        gpu.is_well()
        yield rig, d, asks


async def test_what_waits_in_a_twin_that_goes_is_answered(tmp_path: Path, gpu: Played) -> None:
    """What its process had begun too, should that die meanwhile."""
    async with stuck(tmp_path, gpu, **LATER) as (rig, d, asks):
        former = d.twin.pid
        await rig.domains.apply({"d": twinned(**OTHER)})
        assert not d.falls
        assert d.twin is None
        await until(lambda: sum(ask.done() for ask in asks) >= 10, "those that waited")
        os.kill(former, signal.SIGKILL)
        assert Counter([(await ask).ep for ask in asks]) == {CUDA: 12}
        await until(lambda: workers() == [d.pid], "the twin has ended")


async def test_what_waits_in_a_twin_that_stays_does_not_wait_for_it(
    tmp_path: Path, gpu: Played
) -> None:
    kept = {"cpu_twin": "preloaded"}
    async with stuck(tmp_path, gpu, **LATER, **kept) as (rig, d, asks):
        former, twin = d.twin.pid, d.twin
        await rig.domains.apply({"d": twinned(**OTHER, **kept)})
        assert d.twin is twin
        await until(lambda: sum(ask.done() for ask in asks) >= 10, "those that waited")
        assert {ask.result().ep for ask in asks if ask.done()} == {CUDA}
        os.kill(former, signal.SIGKILL)
        assert {(await ask).ep for ask in asks} == {CUDA, CPU}


async def test_what_waits_in_a_twin_that_cannot_follow_is_the_next_ones(
    tmp_path: Path, gpu: Played
) -> None:
    async with one(tmp_path, "large", "small", **LATER) as (rig, d):
        wrong = {"oom": ["large"], "pids": [d.pid]}
        gpu.has(**wrong)
        assert (await rig.ask("large")).ep == CPU
        gpu.has(**wrong, cpu_broken=True, cpu_slow_s=0.3)
        asks = [asyncio.create_task(rig.ask("large")) for _ in range(6)]
        former = d.twin
        await until(lambda: d.waiting >= 4, "they are with the twin")
        await rig.domains.apply({"d": twinned("large", "small", **{**LATER, "threads": 2})})
        assert list(d.falls) == ["large"]
        assert d.twin is not former
        gpu.has(**wrong)
        assert Counter([(await ask).ep for ask in asks]) == {CPU: 6}


async def test_the_twin_answers_while_the_accelerator_is_tried(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path, **LATER) as (rig, d):
        gpu.has(sticky=True)
        assert (await rig.ask()).ep == CPU
        load, there = Load(rig), workers()
        gpu.has(hang=True)
        order = asyncio.create_task(rig.domains.apply({"d": twinned(**OTHER)}))
        await until(lambda: set(workers()) - set(there), "the accelerator is tried")
        d.ladder.hurry(rig.clock.monotonic())
        d._climb.wake()
        await load.more(CPU)
        assert not order.done()
        (candidate,) = set(workers()) - set(there)  # no probe is in its way
        os.kill(candidate, signal.SIGKILL)
        with pytest.raises(ModelError, match="domain d stays as it was"):
            await order
        await load.more(CPU)
        assert d.falls["m"].fault == "sticky"
        gpu.is_well()
        await rig.domains.apply({"d": twinned(**OTHER)})
        await load.more(CUDA)
        assert not d.falls
        await load.end()


async def test_what_fell_is_proved_on_other_devices(tmp_path: Path, gpu: Played) -> None:
    folder = put(tmp_path / "models", 1)
    await asyncio.to_thread(golden, folder, {"x": [[2.0] * 4]})
    async with one(tmp_path, **LATER) as (rig, d):
        gpu.has(sticky=True)
        assert (await rig.ask()).ep == CPU
        gpu.has(wrong=True)
        with pytest.raises(ModelError, match=r"golden\[0\]"):
            await rig.domains.apply({"d": twinned(**OTHER)})
        assert list(d.falls) == ["m"]
        answer = await rig.ask(values=np.full(4, 3.0))
        assert (answer.ep, *answer.values) == (CPU, 3.0, 3.0, 3.0, 3.0)
