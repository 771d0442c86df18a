"""An accelerator that fails under load, and what becomes of the calls; on a GPU that is played."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import config
from agent.errors import RunError
from agent.inference import admission
from agent.inference.catalog import Golden, Model
from agent.inference.domains.twinned import Twinned
from tests.inference.catalog.repository import describe, install, pair
from tests.inference.domains.bed import nothing_left, workers
from tests.inference.domains.rig import Rig, put, rules, running, until
from tests.inference.test_poisoned import gather

GPU = Path(__file__).parent / "gpu"
OWN_RUNS = 3 + 5  # those of a warm-up and of a proof
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SOON = {"probe_s_min": 0.05, "probe_s_max": 0.4, "devices": ["cuda", "cpu"], "threads": 1}


class Played:
    """The GPU that workers believe in."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.is_well()

    def is_well(self) -> None:
        self.has()

    def has(self, **wrong: Any) -> None:
        """This is wrong with it from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(wrong))
        fresh.replace(self._file)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setenv("PYTHONPATH", str(GPU))
    monkeypatch.setenv("PLAYED_GPU", str(tmp_path / "gpu.json"))
    return Played(tmp_path / "gpu.json")


def twinned(*models: str, **more: Any) -> config.Domain:
    return rules(*models, **{**SOON, **more})


def probes(d: Twinned) -> dict[str, int]:
    return d.ladder.probes


def golden(folder: Path, rows: dict[str, Any]) -> None:
    """It is known what these give: the model's weight is 1."""
    arrays = {name: np.array(found, np.float32) for name, found in rows.items()}
    describe(folder, golden=[pair(folder, arrays, {"y": arrays["x"]})])


@asynccontextmanager
async def one(tmp_path: Path, *models: str, **more: Any) -> AsyncIterator[tuple[Rig, Twinned]]:
    for name in models or ("m",):
        if not (tmp_path / "models" / name).exists():
            put(tmp_path / "models", 1, name)
    async with running(tmp_path / "models", d=twinned(*models, **more)) as rig:
        found = rig.domains.named("d")
        assert isinstance(found, Twinned)
        yield rig, found


class Load:
    """Callers that ask again and again, and count where their answers came from."""

    def __init__(self, rig: Rig, *models: str, callers: int = 4) -> None:
        self.eps = Counter[tuple[str, str]]()
        self._rig = rig
        self._ends = False
        ask = [self._ask(name) for name in models or ("m",) for _ in range(callers)]
        self._tasks = [asyncio.create_task(one) for one in ask]

    async def _ask(self, model: str) -> None:
        while not self._ends:
            await self._rig.domains.named("d").ready.wait()
            answer = await self._rig.ask(model, (3.0,) * 4)
            assert list(answer.values) == [3.0] * 4
            self.eps[model, answer.ep] += 1

    async def more(self, ep: str, model: str = "m", count: int = 200) -> None:
        """Until so many more answers have come from there."""
        before = self.eps[model, ep]
        await until(lambda: self.eps[model, ep] >= before + count or self.over(), f"{ep}")

    def over(self) -> bool:
        return any(task.done() for task in self._tasks)

    async def end(self) -> None:
        """Raises whatever a caller met: none may meet anything."""
        self._ends = True
        await asyncio.gather(*self._tasks)


async def test_a_poisoned_context_amid_load_loses_no_call(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path, class_="realtime", probe_s_min=60.0, probe_s_max=60.0) as (rig, d):
        await until(lambda: d.twin and d.twin.ready.is_set(), "a twin stands by")
        load = Load(rig)
        await load.more(CUDA, count=1000)
        gpu.has(sticky=True)
        await load.more(CPU, count=1000)
        await load.end()
        assert d.falls["m"].fault == "sticky"
        assert "CUDA failure 700: an illegal memory access" in d.falls["m"].cause
        assert d.eps == {"m": CPU}


async def test_what_waits_is_handed_over_too(tmp_path: Path, gpu: Played) -> None:
    gpu.has(sticky=True, after=OWN_RUNS + 3, slow_s=0.01)
    async with one(tmp_path, batch_max=1, probe_s_min=60.0, probe_s_max=60.0) as (rig, _):
        answers = await asyncio.gather(*(rig.ask() for _ in range(60)))
        assert Counter(one.ep for one in answers) == {CUDA: 3, CPU: 57}


async def test_it_returns_once_probes_have_passed(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path, probes_min=3, keep_previous_s=0.0) as (rig, d):
        assert d.twin is None  # it is not realtime: one is made at the fault
        load = Load(rig)
        await load.more(CUDA)
        gpu.has(sticky=True)
        await load.more(CPU)
        await until(lambda: probes(d)["failed"] >= 2, "it is tried again and again")
        assert d.falls["m"].pause_s == pytest.approx(0.2)
        assert "illegal memory access" in d.falls["m"].refusal
        gpu.is_well()
        await load.more(CUDA)
        assert probes(d)["passed"] == 3
        assert not d.falls
        await load.end()
        await until(lambda: d.twin is None, "the twin is of no more use")
        assert d.eps == {"m": CUDA}
        await until(lambda: workers() == [d.pid], "nothing is left of the probes")


async def test_golden_cases_are_shown_before_it_takes_calls(tmp_path: Path, gpu: Played) -> None:
    folder = put(tmp_path / "models", 1)
    rows = {"x": [[2.0] * 4]}
    await asyncio.to_thread(golden, folder, rows)
    async with one(tmp_path, probes_min=1) as (rig, d):
        gpu.has(sticky=True)
        assert (await rig.ask()).ep == CPU
        gpu.has(wrong=True)  # it answers again, and wrongly
        await until(lambda: probes(d)["failed"] >= 2, "it is tried")
        await until(lambda: "golden[0]" in d.falls["m"].refusal, "it is judged by its answers")
        assert (await rig.ask()).ep == CPU
        gpu.is_well()
        await until(lambda: not d.falls, "it is back")
        assert (await rig.ask()).ep == CUDA


async def test_one_that_works_for_its_probes_only_is_left_alone(
    tmp_path: Path, gpu: Played
) -> None:
    """Each return that does not hold doubles the pause: fewer and fewer."""
    gpu.has(sticky=True, after=40)
    pauses = [0.01, 0.02, 0.04, 0.08, 0.16]
    async with one(tmp_path, probes_min=1, probe_s_min=0.01, probe_s_max=600.0) as (rig, d):
        load = Load(rig)
        seen = list[float]()
        for _ in pauses:
            await until(lambda: d.falls or load.over(), "it fails")
            seen.append(d.falls["m"].pause_s)
            await until(lambda: not d.falls or load.over(), "it is back")
        await load.end()
        assert seen == pytest.approx(pauses)
        assert d.ladder.count["sticky"] >= len(pauses)


async def test_without_memory_for_one_its_neighbour_stays(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path, "large", "small", keep_previous_s=0.0) as (rig, d):
        load = Load(rig, "large", "small")
        await load.more(CUDA, "large")
        pid = d.pid
        gpu.has(oom=["large"])
        await load.more(CPU, "large")
        assert list(d.falls) == ["large"]
        assert d.falls["large"].fault == "out_of_memory"
        assert d.eps == {"large": CPU, "small": CUDA}
        gpu.is_well()
        await until(lambda: not d.falls or load.over(), "it is back")
        await load.more(CUDA, "large")
        await load.end()
        assert load.eps["small", CPU] == 0
        assert d.pid == pid  # nobody else was disturbed


async def test_the_process_that_is_to_serve_is_asked_too(tmp_path: Path, gpu: Played) -> None:
    """A probe has what memory there is; the process that kept running has not."""
    async with one(tmp_path, "large", "small", probes_min=1) as (rig, d):
        gpu.has(oom=["large"], pids=[d.pid])
        assert (await rig.ask("large")).ep == CPU
        await until(lambda: "Failed to allocate" in d.falls["large"].refusal, "it is refused")
        assert probes(d)["passed"] > 0
        assert d.eps == {"large": CPU, "small": CUDA}
        gpu.is_well()
        await until(lambda: not d.falls, "it is back")


async def test_a_fall_amid_a_return_ends_that(
    tmp_path: Path, gpu: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that is to prove the model goes, before it was asked."""
    domains, asked, gate = list[Twinned](), threading.Event(), threading.Event()

    def none(_: Model) -> list[Golden]:
        if any(probes(d)["passed"] > probes(d)["failed"] for d in domains):  # it is no probe's
            asked.set()
            gate.wait(30)
        return []

    monkeypatch.setattr(admission, "golden", none)
    settings = {"probes_min": 1, "cpu_twin": "preloaded"}
    async with one(tmp_path, "large", "small", **settings) as (rig, d):
        await until(lambda: d.twin and d.twin.ready.is_set(), "a twin stands by")
        domains.append(d)
        gpu.has(oom=["large"], pids=[d.pid])
        assert (await rig.ask("large")).ep == CPU
        await until(asked.is_set, "it is about to return")
        before = d.pid
        d.fell("thermal", "it is too hot")
        assert list(d.falls) == ["large", "small"]
        await until(lambda: before not in workers(), "its process has ended")
        gate.set()
        gpu.is_well()
        await until(lambda: not d.falls, "both are back")
        assert [(await rig.ask(name)).ep for name in ("large", "small")] == [CUDA, CUDA]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"absent": True}, "ep_missing"),
        ({"absent": True, "driver": True}, "driver_mismatch"),
        ({"silent": True}, "ep_missing"),
    ],
)
async def test_asked_for_the_gpu_and_on_the_cpu_is_a_fault(
    tmp_path: Path, gpu: Played, wrong: dict[str, Any], fault: str
) -> None:
    gpu.has(**wrong)
    async with one(tmp_path, class_="realtime") as (rig, d):
        assert (await rig.ask()).ep == CPU
        assert d.falls["m"].fault == fault
        assert d.twin is None  # it is on the CPU already
        await until(lambda: probes(d)["failed"] > 1, "it is tried")
        assert probes(d)["passed"] == 0
        gpu.is_well()
        await until(lambda: not d.falls, "it is on the GPU")
        assert (await rig.ask()).ep == CUDA


async def test_one_that_fails_its_first_proof_begins_on_the_cpu(
    tmp_path: Path, gpu: Played
) -> None:
    gpu.has(sticky=True)
    async with one(tmp_path) as (rig, d):
        assert (await rig.ask()).ep == CPU
        assert d.falls["m"].fault == "sticky"
        assert d.models["m"].manifest.version == 1  # the version is not to blame
        gpu.is_well()
        await until(lambda: not d.falls, "it is on the GPU")
        assert (await rig.ask()).ep == CUDA


async def test_who_sees_the_gpu_fail_may_say_so(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path) as (rig, d):
        load = Load(rig)
        await load.more(CUDA)
        d.fell("off_the_bus", "Xid 79: GPU has fallen off the bus")
        gpu.has(sticky=True)  # no probe passes before the twin has answered
        await load.more(CPU)
        gpu.is_well()
        await load.more(CUDA)
        await load.end()
        assert d.ladder.count == {"off_the_bus": 1}


async def test_a_hang_costs_its_timeout_and_no_call(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path, call_timeout_s=0.3, probe_s_min=60.0, probe_s_max=60.0) as (rig, d):
        load = Load(rig)
        await load.more(CUDA)
        gpu.has(hang=True)
        await load.more(CPU)
        await load.end()
        assert d.falls["m"].fault == "hang"


async def test_a_call_that_is_itself_to_blame_costs_one_probe(tmp_path: Path, gpu: Played) -> None:
    gpu.has(fragile=True)
    install(tmp_path / "models", gather())
    async with one(tmp_path, probe_s_min=60.0, probe_s_max=60.0) as (rig, d):
        assert (await rig.ask(values=(2.0,) * 4)).ep == CUDA
        with pytest.raises(RunError, match="out of data bounds"):  # as the CPU has it
            await rig.ask(values=(99.0,) * 4)
        await until(lambda: not d.falls, "it is back, long before the pause is over")
        assert (await rig.ask(values=(2.0,) * 4)).ep == CUDA
        assert d.ladder.count == {"sticky": 1}


async def test_a_process_that_dies_silently_is_replaced_where_it_was(
    tmp_path: Path, gpu: Played
) -> None:
    """Nobody said that it was the GPU: that shows when the next one cannot have it."""
    async with one(tmp_path) as (rig, d):
        assert (await rig.ask()).ep == CUDA
        gpu.has(die=True, absent=True)
        assert (await rig.ask()).ep == CPU
        assert d.falls["m"].fault == "ep_missing"


async def test_a_call_that_may_not_be_made_twice_is_given_back(tmp_path: Path, gpu: Played) -> None:
    put(tmp_path / "models", 1, idempotent=False)
    async with one(tmp_path) as (rig, d):
        gpu.has(sticky=True)
        with pytest.raises(RunError, match="CUDA failure 700"):
            await rig.ask()
        await until(d.ready.is_set, "the twin is ready")
        assert (await rig.ask()).ep == CPU


async def test_without_leave_for_the_cpu_the_process_alone_is_replaced(
    tmp_path: Path, gpu: Played
) -> None:
    async with one(tmp_path, devices=["cuda"]) as (rig, d):
        before = d.pid
        gpu.has(sticky=True, after=OWN_RUNS + 1)
        assert [(await rig.ask()).ep for _ in range(2)] == [CUDA] * 2
        assert d.pid != before
        assert not d.falls


async def test_a_version_that_is_loaded_meanwhile_is_the_twins_too(
    tmp_path: Path, gpu: Played
) -> None:
    async with one(tmp_path, class_="realtime", probe_s_min=60.0, probe_s_max=60.0) as (rig, d):
        await until(lambda: d.twin and d.twin.ready.is_set(), "a twin stands by")
        put(tmp_path / "models", 2)
        await rig.domains.load("m", 2)
        await until(lambda: d.twin and d.twin.models == d.models, "it follows")
        gpu.has(sticky=True)
        answer = await rig.ask()
        assert (answer.ep, answer.version, answer.values[0]) == (CPU, 2, 2.0)
        put(tmp_path / "models", 3)
        await rig.domains.load("m", 3)  # with no GPU to prove it on
        assert await rig.version() == 3
        gpu.is_well()
        d.restart()  # somebody says that it is mended
        await until(lambda: not d.falls, "it is back")
        answer = await rig.ask()
        assert (answer.ep, answer.version) == (CUDA, 3)


async def test_its_budget_of_time_is_the_gpus(tmp_path: Path, gpu: Played) -> None:
    put(tmp_path / "models", 1, latency_ms_max=200)
    gpu.has(cpu_slow_s=0.3)
    async with one(tmp_path) as (rig, d):
        assert (await rig.ask()).ep == CUDA
        gpu.has(sticky=True, cpu_slow_s=1)  # more than a stalled machine adds to a call on the GPU
        assert (await rig.ask()).ep == CPU
        assert d.cost_ratio("m") > 2


async def test_other_devices_end_what_was(tmp_path: Path, gpu: Played) -> None:
    async with one(tmp_path) as (rig, d):
        gpu.has(sticky=True)
        assert (await rig.ask()).ep == CPU
        await rig.domains.apply({"d": twinned(devices=["cpu"])})
        assert not d.falls
        await until(lambda: d.twin is None, "there is no need of a twin")
        assert (await rig.ask()).ep == CPU


async def test_nothing_is_left_of_it(tmp_path: Path, gpu: Played) -> None:
    with nothing_left():
        async with one(tmp_path, class_="realtime") as (rig, d):
            await until(lambda: d.twin and d.twin.ready.is_set(), "a twin stands by")
            gpu.has(sticky=True)
            await rig.ask()
            await until(lambda: probes(d)["failed"] > 0, "it is probed")
