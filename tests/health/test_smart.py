"""What the smart check makes of what it finds; tests/api/test_health.py asks a real agent."""

import asyncio
import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.config import Models
from agent.errors import BusyError, CallLost, NotThere, RunError, StoreError
from agent.health.checks import bounds, smart
from agent.health.checks.check import Check, gravest
from agent.health.checks.inference import RUNS_MAX, WINDOW_S, Probe, Ran
from agent.health.checks.smart import Smart
from agent.health.conditions import Conditions
from agent.inference import wire
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.figures import Figures
from agent.inference.domains.work import Class, Result, Work
from bench import models

TENSOR = wire.Tensor("x", "FP32", [-1, 4])
WORDS = wire.Tensor("x", "BYTES", [-1, 4])
Does = Callable[["Stub", Work], None]


class Stub:
    """A domain whose answers a test decides."""

    def __init__(self, model: Model, does: Does, takes: wire.Tensor = TENSOR) -> None:
        self.name, self.settings = "d", Settings(models=["m"])
        self.models = {"m": model}
        self.ready = asyncio.Event()
        self.ready.set()
        self.figures = Figures()
        self.cause = self.hint = ""
        self.waiting = 0
        self.processes = {"serving": 1}
        self.instances: list[Any] = []
        self.asked, self.given_up = list[Work](), list[Work]()
        self._does = does
        self._loaded = wire.Loaded("CPU", 0.0, inputs=[takes])

    def loaded(self, _: str) -> wire.Loaded:
        return self._loaded

    def submit(self, work: Work) -> None:
        self.asked.append(work)
        self._does(self, work)

    def cancel(self, work: Work) -> None:
        self.given_up.append(work)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    models.write(tmp_path, "m", models.identity())
    return Catalog(tmp_path).newest("m")


def answers(values: list[float]) -> Does:
    content = np.array([values], np.float32).tobytes()
    tensor = wire.Tensor("y", "FP32", [1, len(values)], len(content))
    head = msgspec.Raw(msgspec.msgpack.encode(wire.Inferred([tensor])))

    def does(_: Stub, work: Work) -> None:
        work.times.began_s, work.times.ended_s = 1.0, 1.5
        work.answer(Result(head, memoryview(content), "m/1@0", "CPU"))

    return does


def fails(error: Exception) -> Does:
    return lambda _, work: work.fail(error)


def refuses(error: Exception, waiting: int = 0) -> Does:
    def does(stub: Stub, _: Work) -> None:
        stub.waiting = waiting
        raise error

    return does


def nothing(_: Stub, __: Work) -> None:
    """It hangs."""


def others_first(stub: Stub, _: Work) -> None:
    """It is busy with the calls of others."""
    stub.figures.counted("m", "ok")


@pytest.mark.parametrize(
    ("does", "verdict", "found"),
    [
        (answers([0.0] * 4), "pass", "answered"),
        (answers([0.0, float("nan"), 0.0, 0.0]), "fail", "not finite"),
        (fails(RunError("it erred")), "fail", "it erred"),
        (fails(CallLost("it died")), "fail", "it died"),
        (fails(NotThere("another version", "ls")), "warn", "another version"),
        (refuses(BusyError("full", "later"), 9), "warn", "full"),
        (refuses(BusyError("not ready", "later")), "fail", "not ready"),
        (nothing, "fail", "no answer in time"),
        (others_first, "warn", "busy"),
    ],
)
async def test_each_end_of_the_call_has_its_verdict(
    model: Model, does: Does, verdict: str, found: str
) -> None:
    clock, stub = Clock(), Stub(model, does)
    probe = Probe(clock)  # that has looked for golden inputs already: nothing is waited for
    await probe.ask(cast(Any, Stub(model, answers([0.0] * 4))), clock.monotonic() + 30)
    limit_s = 0.05 if does in (nothing, others_first) else 30.0
    check = await probe.ask(cast(Any, stub), clock.monotonic() + limit_s)
    assert (check.name, check.subject, check.verdict) == ("inference", "d", verdict)
    assert found in check.found
    assert bool(check.remedy) is (verdict != "pass")
    (work,) = stub.asked
    assert work.klass is Class.BATCH
    assert bool(stub.given_up) is (does in (nothing, others_first)), "nobody waits for it"


async def test_what_nobody_knows_how_to_ask_is_said(model: Model) -> None:
    clock, stub = Clock(), Stub(model, nothing, WORDS)
    check = await Probe(clock).ask(cast(Any, stub), clock.monotonic() + 30)
    assert (check.verdict, stub.asked) == ("warn", [])
    assert "golden" in check.remedy


async def test_golden_inputs_are_judged(tmp_path: Path) -> None:
    pair = {"inputs": "in.npz", "outputs": "out.npz"}
    for (side, file), name in zip(list(pair.items()), "xy", strict=True):
        np.savez(tmp_path / file, **{name: np.ones((1, 4), np.float32)})
        pair[f"{side}_sha256"] = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    models.write(tmp_path, "m", models.identity(), golden=[pair])
    for file in ("in.npz", "out.npz"):
        (tmp_path / file).rename(tmp_path / "m/1" / file)
    found, clock, probe = Catalog(tmp_path).newest("m"), Clock(), Probe(Clock())
    for value, verdict in ((1.0, "pass"), (2.0, "fail")):
        stub = Stub(found, answers([value] * 4))
        check = await probe.ask(cast(Any, stub), clock.monotonic() + 30)
        assert check.verdict == verdict, check.found
        assert bytes(stub.asked[0].body[0]) == np.ones((1, 4), np.float32).tobytes()


def test_what_took_long_is_seen_against_the_budget_or_the_best(model: Model) -> None:
    class At(Clock):
        now_s = 1000.0

        def monotonic(self) -> float:
            return self.now_s

    clock, ran = At(), Ran(model)
    for took_s in (0.1, 0.1, 0.1):
        ran.add(took_s, clock.now_s)
    assert bounds.compute("d", ran, clock).verdict == "pass"
    ran.add(0.5, clock.now_s)
    slow = bounds.compute("d", ran, clock)
    assert (slow.verdict, slow.subject) == ("warn", "d/m")
    assert slow.remedy
    clock.now_s += WINDOW_S + 1
    assert bounds.compute("d", ran, clock).verdict == "pass", "that was long ago"
    tight = msgspec.structs.replace(model.manifest, latency_ms_max=50.0)
    strict = Ran(msgspec.structs.replace(model, manifest=tight))
    strict.add(0.06, clock.now_s)
    assert bounds.compute("d", strict, clock).verdict == "warn"
    for _ in range(2 * RUNS_MAX):
        strict.add(0.04, clock.now_s)
    assert bounds.compute("d", strict, clock).verdict == "pass", "it is quick again"


def test_p95_is_what_nineteen_of_twenty_do_not_exceed() -> None:
    assert bounds.p95([]) == 0.0
    assert bounds.p95([3.0]) == 3.0
    assert bounds.p95([float(i) for i in range(1, 21)]) == 19.0
    assert bounds.p95([float(i) for i in range(1, 101)]) == 95.0


async def test_memory_is_held_against_its_bound(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(model, nothing)
    stub.instances = [type("One", (), {"pid": os.getpid()})]
    assert bounds.memory(cast(Any, stub)).verdict == "pass"
    stub.settings = Settings(models=["m"], memory_bytes_max=64 << 20)
    monkeypatch.setattr(bounds, "_resident_bytes", lambda _: 60 << 20)
    assert bounds.memory(cast(Any, stub)).verdict == "warn"
    monkeypatch.setattr(bounds, "_resident_bytes", lambda _: 65 << 20)
    full = bounds.memory(cast(Any, stub))
    assert (full.verdict, full.found) == ("fail", "65 MiB")
    assert "domains.d.memory_bytes_max" in full.remedy


async def test_calls_that_wait_for_long_are_seen(model: Model) -> None:
    clock, stub = Clock(), Stub(model, nothing)
    now_s = clock.monotonic()
    for _ in range(20):
        work = Work(
            *("m", msgspec.Raw(b"\xc0"), []),
            size_bytes=0,
            klass=Class.BATCH,
            now_s=now_s - 20,
            timeout_s=30,
        )
        work.times.sent_s = now_s
        stub.figures._keep(work, "")
    found = bounds.queue(cast(Any, stub), clock)
    assert found.verdict == "warn"
    assert "at most 15000 ms" in found.expected


async def test_all_end_at_one_deadline(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(smart, "DEADLINE_S", 0.05)
    stubs = [Stub(model, nothing) for _ in range(5)]
    check = Smart(lambda: cast(Any, stubs), hangs, Conditions(Clock()), Clock())
    report = await asyncio.wait_for(check.now(), 30)
    assert report.status == "unhealthy"
    failed = [one.name for one in report.checks if one.verdict == "fail"]
    assert sorted(failed) == ["inference"] * 5 + ["store"]


async def test_one_check_at_a_time_whose_answer_all_get(model: Model) -> None:
    taken = 0

    async def takes() -> None:
        nonlocal taken
        taken += 1
        await asyncio.sleep(0)

    stub = Stub(model, answers([0.0] * 4))
    check = Smart(lambda: cast(Any, [stub]), takes, Conditions(Clock()), Clock())
    first, gone = asyncio.create_task(check.now()), asyncio.create_task(check.now())
    await asyncio.sleep(0)
    first.cancel()  # who leaves takes the answer from nobody
    reports = await asyncio.gather(gone, *(check.now() for _ in range(5)))
    assert (taken, len(stub.asked)) == (1, 1)
    assert {one.status for one in reports} == {"healthy"}
    check._ended_s -= smart.KEEP_S + 1
    await check.now()
    assert (taken, len(stub.asked)) == (2, 2)


async def test_the_gravest_decides(model: Model) -> None:
    async def refuses_records() -> None:
        raise StoreError("the disk is full", "make room")

    async def takes() -> None:
        return

    async def word(takes: Any, conditions: Conditions) -> str:
        stub = Stub(model, answers([0.0] * 4))
        return (await Smart(lambda: cast(Any, [stub]), takes, conditions, Clock()).now()).status

    held = Conditions(Clock())
    assert await word(takes, held) == "healthy"
    held.hold("link_down", "link", "warning", "a", "b")
    assert await word(takes, held) == "degraded"
    assert await word(refuses_records, held) == "unhealthy"
    assert gravest([]) == "healthy"
    assert Check("store", "store", "pass", "a", "b").remedy == ""


def test_a_larger_cache_is_no_leak() -> None:
    usual = bounds.own_bytes_max(Models())
    assert usual == bounds.AGENT_BYTES_MAX
    assert bounds.own_bytes_max(Models(cache_bytes_max=0)) == usual
    assert bounds.own_bytes_max(Models(cache_bytes_max=4 << 30)) >= usual + (4 << 30) - (16 << 20)


def test_what_is_shared_with_others_is_not_the_agents_own_memory() -> None:
    size = 64 << 20
    before = bounds.own_bytes()
    with mmap.mmap(-1, size) as shared:
        shared.write(bytes(size))
        assert bounds.own_bytes() - before < size // 2
    # Not of the heap, where there may be as much that is free, and counted already.
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(bytes(size))
        assert bounds.own_bytes() - before > size // 2
