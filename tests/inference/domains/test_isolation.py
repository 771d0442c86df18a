"""Children are killed, stopped and ended by their memory limit, under load; nobody else notices."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import CallLost, HoldfastError, RunError
from agent.host.cells import Cells
from tests.host.children import v1_places
from tests.inference.domains.bed import (
    DEADLINE_S,
    KILLS,
    SEED,
    Callers,
    answered,
    groups,
    instances,
    nothing_left,
    numbers,
    repository,
    rules,
    running,
    send,
    until,
    whole,
)
from tests.outside import ROOT, alive
from tests.outside import until as until_outside

PAIR = {"min": 2, "max": 2, "spare": 1}
MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_no_call_is_lost_with_a_child(root: Path, sign: signal.Signals) -> None:
    """One death costs no call: each has its answer, and it is its own."""
    print("HOLDFAST_SEED", SEED)
    chance = random.Random(SEED)
    limits = {"call_timeout_s": 0.5, "start_timeout_s": 8.0}
    victim = rules("first", instances=PAIR, queue_max=4096, **limits)
    with nothing_left():
        async with running(root, victim=victim, other=rules("second")) as domains:
            one, two = domains.named("victim"), domains.named("other")
            callers = Callers(one, 12, lambda: numbers("first", chance.random()))
            # These are too large for the socket, and go through shared memory.
            large = Callers(one, 2, lambda: numbers("first", chance.random(), floats=1 << 17))
            others = Callers(two, 3, lambda: numbers("second", chance.random()))
            pids = {i.pid for i in instances(two)}
            for _ in range(KILLS):
                await asyncio.sleep(chance.random() * 0.05)
                await until(lambda: instances(one), "somebody to hit")
                hit = chance.choice(instances(one))
                send(hit, sign)
                await until(lambda: hit not in instances(one), "it is gone")  # noqa: B023
                for each in (callers, large):
                    await each.settle()
            await until(lambda: len(one.instances) == 3, "the line is full again")
            for each in (callers, large, others):
                assert each.answers
                await each.end()
            assert {i.pid for i in instances(two)} == pids
            assert two.restarts == 0


async def test_a_call_that_takes_too_much_memory_is_lost_alone(root: Path) -> None:
    """The limit ends its child, then another one; the calls beside it are answered."""
    leaky = rules("hog", instances=PAIR, memory_bytes_max=160 * MIB)
    with nothing_left():
        async with running(root, leaky=leaky, other=rules("second")) as domains:
            one, two = domains.named("leaky"), domains.named("other")
            others = Callers(two, 3, lambda: numbers("second", 1.0))
            pids = {i.pid for i in instances(two)}
            for _ in range(max(1, KILLS // 2)):  # each costs two children
                await until(one.ready.is_set, "it serves")
                poison = asyncio.create_task(answered(one, whole("hog", "bytes", 512 * MIB)))
                small = [
                    asyncio.create_task(answered(one, whole("hog", "bytes", MIB))) for _ in range(6)
                ]
                with pytest.raises((CallLost, RunError), match="memory") as lost:
                    await poison
                # Without control groups it is a limit of the process: the call alone fails.
                assert lost.type is CallLost or not v1_places()
                assert await asyncio.gather(*small) == [b"\x01"] * 6
            await others.end()
            assert {i.pid for i in instances(two)} == pids


async def test_both_instances_die_at_once(root: Path) -> None:
    pair = rules("first", instances={"min": 2, "max": 2})
    with nothing_left():
        async with running(root, pair=pair) as domains:
            one = domains.named("pair")
            await until(lambda: len(one.instances) == 2, "both are there")
            callers = Callers(one, 8, lambda: numbers("first", 2.0))
            for _ in range(max(1, KILLS // 2)):
                await until(lambda: len(one.instances) == 2, "both are there")
                for instance in list(one.instances):
                    send(instance, signal.SIGKILL)
                await callers.settle()
            await callers.end()


@pytest.mark.parametrize("moment", ["spawned", "ready"])
async def test_a_child_that_dies_while_it_starts_is_replaced(root: Path, moment: str) -> None:
    with nothing_left():
        async with running(root, one=rules("first")) as domains:
            one = domains.named("one")
            for _ in range(KILLS):
                send(one.instances[0], signal.SIGKILL)
                await until(lambda: not one.ready.is_set(), "it is down")
                if moment == "spawned":
                    await until(lambda: instances(one), "the next one begins")
                    send(instances(one)[0], signal.SIGKILL)
                await until(one.ready.is_set, "it serves")
            await answered(one, numbers("first", 1.0))


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP, None])
async def test_a_domain_that_is_removed_answers_all_it_had(
    root: Path, sign: signal.Signals | None
) -> None:
    """Whatever its child does meanwhile."""
    with nothing_left():
        async with running(
            root, slow=rules("loop", call_timeout_s=2.0), other=rules("second")
        ) as domains:
            slow, others = domains.named("slow"), domains.named("other").settings
            works = [whole("loop", "turns", 1 << 40, once=once) for once in (True, False, True)]
            for work in works:
                slow.submit(work)
            await until(lambda: works[0].holder, "one is under way")
            if sign:
                send(slow.instances[0], sign)
            async with asyncio.timeout(DEADLINE_S):
                await domains.apply({"other": others})
                ends = await asyncio.gather(*(w.done for w in works), return_exceptions=True)
            assert all(isinstance(end, HoldfastError) for end in ends), ends
            await answered(domains.named("other"), numbers("second", 1.0))


AGENT = """
import asyncio, pathlib, sys
from tests.inference.domains.bed import *

async def main():
    root = repository(pathlib.Path(sys.argv[1]))
    pair = {"min": 2, "max": 2}
    async with running(root, slow=rules("loop", instances=pair), one=rules("first")) as domains:
        slow = domains.named("slow")
        await until(lambda: len(slow.instances) == 2, "both are there")
        slow.submit(whole("loop", "turns", 1 << 40))
        await until(lambda: any(one.flights for one in slow.instances), "one computes")
        print(*(one.pid for d in domains.all() for one in instances(d)), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_nothing_outlives_a_killed_agent(tmp_path: Path) -> None:
    """One child computes, one is stopped; the groups go when the next agent starts."""
    command = [sys.executable, "-c", AGENT, str(tmp_path / "models")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as agent:
        assert agent.stdout is not None
        try:
            pids = [int(pid) for pid in agent.stdout.readline().split()]
            assert len(pids) == 3
            os.kill(pids[-1], signal.SIGSTOP)
            assert groups(agent.pid) or not v1_places()
        finally:
            agent.kill()
    until_outside(lambda: not any(map(alive, pids)), "the children are gone")

    def swept() -> bool:
        Cells()
        return not groups(agent.pid)

    until_outside(swept, "its groups are gone")
