"""Versions take each other's place under load: no call is lost, no answer is another version's."""

import asyncio
import os
import shutil
import signal
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from agent.errors import ModelError, NotNow, NotThere
from agent.inference.admission import RUNS
from bench.models import identity, not_numbers
from tests.inference.catalog.repository import describe, install, linear, pair, single
from tests.inference.domains.family import workers
from tests.inference.domains.rig import DEADLINE_S, FAULTY, Rig, marked, put, rules, running, until

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SWAPS = 1000 if LONG else 10
CLIENTS = 4
GROWTH_BYTES_MAX = 4 << 20
CHOSEN = '{"m": {"version": 1}}'


class Load:
    """Clients that ask without a pause; each answer has to be that of the version on its stamp."""

    def __init__(self, rig: Rig, model: str = "m") -> None:
        self.answers: dict[int, int] = {}  # by version
        self._rig = rig
        self._model = model
        self._over = False

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._ask(client)) for client in range(CLIENTS)]
        await until(lambda: self.answers, "the first answer")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)  # raises what a client met

    async def _ask(self, client: int) -> None:
        count = 0
        while not self._over:
            count += 1
            sent = float(client * 1000 + count % 1000)
            answer = await self._rig.ask(self._model, (sent,) * 4)
            assert list(answer.values) == [sent * answer.version] * 4, answer
            self.answers[answer.version] = self.answers.get(answer.version, 0) + 1

    async def sees(self, version: int) -> None:
        """Until this version has answered once more."""
        before = self.answers.get(version, 0)
        await until(lambda: self.answers.get(version, 0) > before, f"an answer of {version}")


@asynccontextmanager
async def loaded(root: Path, **more: Any) -> AsyncIterator[tuple[Rig, Load]]:
    async with running(root, d=rules(**more)) as rig, Load(rig) as load:
        yield rig, load


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with version 1, which was chosen."""
    put(tmp_path / "models", 1)
    (tmp_path / "models.json").write_text(CHOSEN)
    return tmp_path / "models"


async def test_swaps_under_load_lose_no_call_and_leave_nothing_behind(root: Path) -> None:
    """Three versions in turn, so that no pool stands by that could be taken again."""
    me, rss = psutil.Process(), list[int]()
    for version in (2, 3):
        put(root, version)
    async with loaded(root, keep_previous_s=0.01) as (rig, load):
        fds = me.num_fds()

        def settled() -> bool:
            return len(workers()) == 1 and me.num_fds() == fds

        for swap in range(SWAPS):
            version = (swap + 1) % 3 + 1
            model = await rig.domains.load("m", version)
            assert model.manifest.version == version
            await load.sees(version)
            await until(settled, f"after swap {swap} all is as before")
            rss.append(me.memory_info().rss)
        tasks = len(asyncio.all_tasks())
    assert set(load.answers) == {1, 2, 3}
    assert tasks < 20
    late = rss[len(rss) // 3 :]
    slope = statistics.linear_regression(range(len(late)), late).slope
    print(f"{SWAPS} swaps, {sum(load.answers.values())} answers, {slope:.0f} bytes a swap")
    assert slope * len(late) < GROWTH_BYTES_MAX, late
    assert not workers()


async def test_two_versions_go_back_and_forth_between_two_warm_pools(root: Path) -> None:
    put(root, 2)
    async with loaded(root) as (rig, load):
        await rig.domains.load("m", 2)
        pids = set(workers())
        assert len(pids) == 2
        for turn in range(SWAPS):
            model = await rig.domains.roll_back("m")
            assert model.manifest.version == 1 + turn % 2
            await load.sees(model.manifest.version)
        assert set(workers()) == pids


async def test_calls_that_wait_or_run_during_a_swap_are_answered(root: Path) -> None:
    put(root, 2)
    async with running(root) as rig:
        waiting = [asyncio.create_task(rig.ask()) for _ in range(100)]
        swap = asyncio.create_task(rig.domains.load("m", 2))
        while not swap.done():
            waiting.append(asyncio.create_task(rig.ask()))
            await asyncio.sleep(0.001)
        answers = await asyncio.gather(*waiting)
        assert all(answer.values[0] == answer.version for answer in answers)
        assert await rig.version() == 2


async def test_who_insists_on_a_version_gets_it_or_is_told(root: Path) -> None:
    put(root, 2)
    async with running(root) as rig:
        await rig.domains.load("m", 2)  # both pools are warm now
        for _ in range(10):
            serving = await rig.version()
            pinned = [asyncio.create_task(rig.ask(version=serving)) for _ in range(64)]
            loose = [asyncio.create_task(rig.ask()) for _ in range(64)]
            await asyncio.sleep(0)
            await rig.domains.roll_back("m")
            found = await asyncio.gather(*pinned, return_exceptions=True)
            for one in found:
                assert isinstance(one, NotThere) or one.values[0] == serving, one
            await asyncio.gather(*loose)
        with pytest.raises(NotThere, match="version 2 is loaded, not 1"):
            await rig.ask(version=1)


def wrong_digest(root: Path) -> None:
    file = put(root, 2) / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def truncated(root: Path) -> None:
    file = put(root, 2) / "model.onnx"
    file.write_bytes(file.read_bytes()[:-40])


def truncated_before_it_was_described(root: Path) -> None:
    truncated(root)
    describe(root / "m/2")


def unknown_operator(root: Path) -> None:
    install(root, single("Frobnicate"), version=2)


def wrong_form(root: Path) -> None:
    put(root, 2, outputs=[{"name": "y", "dtype": "FP32", "shape": [-1, 5]}])


def not_finite(root: Path) -> None:
    install(root, not_numbers(), version=2)  # the logarithm of the zeros that it is tried with


def golden_mismatch(root: Path) -> None:
    golden(root, linear(weight=2.0), 3.0)


def golden(root: Path, model: Any, factor: float, **said: Any) -> None:
    folder = install(root, model, version=2)
    x = np.ones((2, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": factor * x})], **said)


def slow(root: Path) -> None:
    put(root, 2, latency_ms_max=1e-5)


def crash_at_load(root: Path) -> None:
    install(root, marked(linear(weight=2.0), "crash"), version=2)


def crash_in_warm_up(root: Path) -> None:
    install(root, marked(linear(weight=2.0), "run 2"), version=2)


def hang_at_load(root: Path) -> None:
    install(root, marked(linear(weight=2.0), "hang"), version=2)


def golden_that_kills(root: Path) -> None:
    golden(root, marked(linear(weight=2.0), "run 5"), 2.0)  # after three of its warm-up


POISONS = {
    wrong_digest: "sha256 is",
    truncated: "bytes",
    truncated_before_it_was_described: "model.onnx",
    unknown_operator: "Frobnicate",
    wrong_form: "the manifest says",
    not_finite: "not finite",
    golden_mismatch: r"golden\[0\]: output 'y' element",
    slow: "and its model.yaml allows 1e-05",
    crash_at_load: "SIGSEGV",
    crash_in_warm_up: "SIGSEGV",
    hang_at_load: "not ready within",
    golden_that_kills: "SIGSEGV",
}


async def test_what_must_not_serve_is_kept_out_and_named_and_costs_no_call(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTY))
    async with running(root, d=rules(start_timeout_s=4.0)) as rig, Load(rig) as load:
        pid = rig.domains.named("d").pid
        for poison, said in POISONS.items():
            poison(root)
            with pytest.raises(ModelError, match=said) as caught:
                await rig.domains.load("m", 2)
            assert "2" in str(caught.value), poison
            assert caught.value.hint, poison
            await load.sees(1)
            shutil.rmtree(root / "m/2")
        domain = rig.domains.named("d")
        assert (domain.pid, domain.restarts) == (pid, 0)
        assert len(workers()) == 1
        assert rig.file.read_text() == CHOSEN
    assert set(load.answers) == {1}


async def test_a_candidate_that_is_killed_while_it_is_proved_is_kept_out(root: Path) -> None:
    folder = put(root, 2)
    x = np.ones((2, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": 2 * x})] * 200)
    async with loaded(root) as (rig, load):
        pools = rig.domains.named("d")._pools
        for sign, proved in ((signal.SIGKILL, False), (signal.SIGSEGV, True)):
            order = asyncio.create_task(rig.domains.load("m", 2))
            await until(lambda: any(one.pid for one in pools.instances[1:]), "it loads")
            candidate = pools.instances[1]
            assert candidate.pid
            await until(lambda: candidate.ready or not proved, "it is proved")  # noqa: B023
            os.kill(candidate.pid, sign)
            with pytest.raises(ModelError, match=sign.name):
                await asyncio.wait_for(order, DEADLINE_S)
            await load.sees(1)
        assert (await rig.domains.load("m", 2)).manifest.version == 2
        await load.sees(2)


async def test_an_order_that_is_given_up_leaves_no_process(root: Path) -> None:
    put(root, 2)
    async with running(root) as rig:
        order = asyncio.create_task(rig.domains.load("m", 2))
        await until(lambda: len(workers()) == 2, "the candidate's process")
        order.cancel()
        await asyncio.wait([order])
        await until(lambda: len(workers()) == 1, "the candidate's process is gone")
        assert await rig.version() == 1


async def test_orders_that_come_together_are_carried_out_one_after_the_other(root: Path) -> None:
    for version in (2, 3):
        put(root, version)
    async with loaded(root) as (rig, load):
        orders = [asyncio.create_task(rig.domains.load("m", v)) for v in (2, 3, 1, 2, 2, 3)]
        done = await asyncio.gather(*orders)
        assert [model.manifest.version for model in done] == [2, 3, 1, 2, 2, 3]
        await load.sees(3)


async def test_the_version_that_serves_is_loaded_again_without_a_process(root: Path) -> None:
    async with loaded(root) as (rig, load):
        pids = set(workers())
        assert (await rig.domains.load("m", 1)).manifest.version == 1
        assert (await rig.domains.load("m", None)).manifest.version == 1
        assert set(workers()) == pids
        await load.sees(1)


async def test_an_order_to_a_domain_that_starts_or_is_down_holds(root: Path) -> None:
    put(root, 2)
    put(root, 1, "other")
    put(root, 3)
    for version in (1, 2, 3):  # none can serve: the domain tries and tries
        describe(root / f"m/{version}", latency_ms_max=1e-6)
    async with running(root, wait=False, d=rules("m", "other")) as rig:
        domain = rig.domains.named("d")
        await until(lambda: domain.restarts >= 1, "a start that failed")
        describe(root / "m/2")
        assert (await rig.domains.load("m", 2)).manifest.version == 2
        assert await rig.version("m") == 2
        assert await rig.version("other") == 1  # the model beside it came along
        describe(root / "m/3")
        os.kill(domain.pid, signal.SIGKILL)
        await until(lambda: not domain.ready.is_set(), "it is down")
        assert (await rig.domains.load("m", 3)).manifest.version == 3
        assert await rig.version() == 3
        assert await rig.version("other") == 1


async def test_rollback_comes_from_the_disk_when_no_pool_stands_by(root: Path) -> None:
    put(root, 2)
    async with loaded(root, keep_previous_s=0.01) as (rig, load):
        with pytest.raises(NotNow, match="no former version"):
            await rig.domains.roll_back("m")
        await rig.domains.load("m", 2)
        for version in (1, 2, 1):
            await until(lambda: len(workers()) == 1, "the former process is gone")
            assert (await rig.domains.roll_back("m")).manifest.version == version
            await load.sees(version)


async def test_a_rollback_to_a_version_that_died_or_was_damaged_since(root: Path) -> None:
    put(root, 2)
    async with loaded(root) as (rig, load):
        former = rig.domains.named("d").pid
        await rig.domains.load("m", 2)
        os.kill(former, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(former), "it is gone")
        assert (await rig.domains.roll_back("m")).manifest.version == 1
        assert rig.domains.named("d").pid not in (former, None)
        (root / "m/2/model.onnx").write_bytes(b"no model")
        assert (await rig.domains.roll_back("m")).manifest.version == 2  # its process is there
        await load.sees(2)
        with pytest.raises(ModelError, match="m/2"):
            await rig.domains.load("m", 2)
        await load.sees(2)


async def test_a_former_pool_is_given_up_when_its_own_time_is_over(root: Path) -> None:
    put(root, 2)
    async with running(root, d=rules(keep_previous_s=2.0)) as rig:
        first = rig.domains.named("d").pid
        await rig.domains.load("m", 2)
        assert psutil.pid_exists(first)
        await rig.domains.roll_back("m")
        await until(lambda: len(workers()) == 1, "version 2 is gone")
        assert rig.domains.named("d").pid == first
        assert await rig.version() == 1


async def test_a_proof_is_none_of_the_serving_versions_figures(root: Path) -> None:
    put(root, 2)
    async with running(root) as rig:
        for _ in range(3):
            await rig.ask()
        await rig.domains.load("m", 2)
        figures = rig.domains.named("d").figures
        assert len(figures.traces()) == 3 < RUNS


async def test_another_version_ends_the_quarantine_of_the_one_before(root: Path) -> None:
    put(root, 2)
    async with running(root, d=rules(quarantine_after=2)) as rig:
        domain = rig.domains.named("d")
        await rig.domains.load("m", 1)
        while not domain.quarantined:
            await until(lambda: domain.ready.is_set() or domain.quarantined, "it serves")
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not workers(), "it died")
            await until(lambda: domain.quarantined or domain.ready.is_set(), "it rests, or not")
        await rig.domains.load("m", 2)
        assert await rig.version() == 2
        assert not domain.quarantined


@pytest.mark.parametrize("size", [1 << 27, 1 << 40, 1 << 62])
async def test_a_version_whose_smallest_call_nobody_could_send_is_refused(
    tmp_path: Path, size: int
) -> None:
    """Its zeros are not made: they would take the agent's own memory."""
    root = tmp_path / "models"
    put(root, 1)
    async with running(root, m=rules()) as rig:
        install(root, identity(size=size), version=2, warm_up=0)
        with pytest.raises(ModelError, match="its inputs take"):
            await rig.domains.load("m", 2)
        assert (await rig.ask()).version == 1


async def test_a_version_that_is_not_on_the_disk_is_named_with_those_that_are(root: Path) -> None:
    put(root, 2)
    async with loaded(root, keep_previous_s=0.01) as (rig, load):
        for version in (0, 7, -1):
            with pytest.raises(NotThere, match=f"no version {version} of model 'm'.*: there are 1"):
                await rig.domains.load("m", version)
        await rig.domains.load("m", 2)
        await until(lambda: len(workers()) == 1, "the former process is gone")
        shutil.rmtree(root / "m/1")
        with pytest.raises(NotThere, match="no version 1 of model 'm' on the disk: there are 2"):
            await rig.domains.roll_back("m")
        shutil.rmtree(root / "m")
        with pytest.raises(NotThere, match="no version of model 'm' on the disk"):
            await rig.domains.load("m", None)
        await load.sees(2)
