"""While machine and agent stand still nothing moves, and nobody is taken for hung because of it."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference import wire
from agent.inference.domains import watch, zygote
from agent.inference.domains.process import Process
from agent.inference.domains.watch import Watch
from tests.inference.domains.bed import (
    CLOCK,
    instances,
    nothing_left,
    numbers,
    repository,
    rules,
    running,
    send,
    until,
    within,
)

TIMEOUT_S = 0.5


def paused(_: pytest.MonkeyPatch) -> None:
    """The machine is virtual, or the agent's container stopped: no clock shows it."""
    time.sleep(TIMEOUT_S * 1.5)


def asleep(patch: pytest.MonkeyPatch) -> None:
    """Timers stand still, CLOCK_BOOTTIME does not."""
    now_s = CLOCK.monotonic
    patch.setattr(CLOCK, "monotonic", lambda: now_s() + 20.0)


@pytest.mark.parametrize("stands", [paused, asleep])
async def test_a_call_amid_which_the_machine_stands_still_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands: Callable[[pytest.MonkeyPatch], None]
) -> None:
    monkeypatch.setattr(watch, "DOUBT_S", 0.0)
    looks = list[int]()

    def waited_s(child: zygote.Child) -> float:
        looks.append(child.pid)
        return 0.0

    with nothing_left():
        async with running(repository(tmp_path), one=rules("first", call_timeout_s=TIMEOUT_S)) as d:
            one, work = d.named("one"), numbers("first", 1.0, once=True)
            (there,) = instances(one)
            monkeypatch.setattr(zygote.Child, "waited_s", waited_s)
            send(there, signal.SIGSTOP)
            one.submit(work)
            await until(lambda: work.holder, "it is under way")
            stands(monkeypatch)
            looks.clear()
            await until(lambda: len(looks) >= 2 or not one.instances, "it is looked at")
            send(there, signal.SIGCONT)
            await within(work.done)
            assert one.instances == [there]
            send(there, signal.SIGSTOP)
            one.submit(numbers("first", 1.0))
            await until(lambda: there not in one.instances, "now it hangs")


async def test_a_start_amid_which_the_machine_stands_still_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = cast(Process, SimpleNamespace(waited_s=lambda: 0.0))
    settings = Settings(models=["m"], start_timeout_s=TIMEOUT_S)
    looking = Watch(process, {}, settings, Clock(), cast(Any, None))
    hello: asyncio.Future[wire.Hello] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(looking.first(hello))
    await asyncio.sleep(0)
    paused(monkeypatch)
    for _ in range(5):
        await asyncio.sleep(0)
    hello.set_result(wire.Hello({}))
    assert await first is hello.result()
    with pytest.raises(TimeoutError):
        await looking.first(asyncio.get_running_loop().create_future())
