"""What workers are forked from: it may end, stop or fail, and costs nobody who is at work."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from agent.inference.domains import zygote
from agent.inference.domains.process import spawned
from agent.inference.domains.zygote import Zygote
from tests.inference.domains.bed import (
    answered,
    instances,
    nothing_left,
    numbers,
    repository,
    rules,
    running,
    until,
    within,
)
from tests.outside import alive


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path)


def zygotes() -> list[int]:
    return [one.pid for one in psutil.Process().children() if one.name() == "hf-zygote"]


async def test_a_worker_is_the_agents_own_child_and_has_what_it_is_given() -> None:
    with nothing_left():
        async with Zygote() as found:
            process = await spawned(
                found, lambda *_: None, lambda _: None, 1 << 20, {"HOLDFAST_TRIED": "yes"}
            )
            worker = psutil.Process(process.pid)
            assert worker.ppid() == os.getpid()
            assert worker.name() == "hf-worker"
            await within(process.end())
        assert zygotes() == []


async def test_its_end_costs_no_worker_and_the_next_one_starts_all_the_same(root: Path) -> None:
    with nothing_left():
        async with running(root, one=rules("first")) as domains:
            one = domains.named("one")
            [first], [victim] = instances(one), zygotes()
            os.kill(victim, signal.SIGKILL)
            await until(lambda: not alive(victim), "it is dead")
            await answered(one, numbers("first", 1.0))
            assert one.restarts == 0
            os.kill(first.pid or 0, signal.SIGKILL)
            await until(lambda: one.restarts == 1 and one.ready.is_set(), "another one serves")
            await answered(one, numbers("first", 2.0))
            assert zygotes() != [victim]


async def test_one_that_stands_still_is_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nothing_left():
        async with running(root, one=rules("first")) as domains:
            one, [victim] = domains.named("one"), zygotes()
            os.kill(victim, signal.SIGSTOP)
            monkeypatch.setattr(zygote, "FORK_TIMEOUT_S", 0.5)
            one.restart()
            await until(lambda: victim not in zygotes(), "it is ended")
            monkeypatch.undo()  # a new one may take its time
            await within(one.ready.wait())
            await answered(one, numbers("first", 2.0))


async def test_one_that_cannot_begin_is_the_domains_cause(root: Path) -> None:
    with nothing_left():
        async with running(root, wait=False, worker="nowhere", one=rules("first")) as domains:
            one = domains.named("one")
            await until(lambda: "no process could be started" in one.cause, "the cause is told")
            assert "has ended twice" in one.cause
