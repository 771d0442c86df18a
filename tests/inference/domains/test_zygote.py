"""What workers are forked from: it may end, stop or fail, and costs nobody who is at work."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.inference import wire
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
    workers,
)
from tests.outside import alive

# Ends at its first fork, just before it tells of the worker.
DYING = """
import os, signal, sys
from pathlib import Path
from agent.inference import zygote

class Dying(zygote.socket.socket):
    def sendall(self, content, *flags):
        if self.fileno() == int(sys.argv[1]) and not Path(BEGUN).exists():
            Path(BEGUN).write_bytes(content)
            os.kill(os.getpid(), signal.SIGKILL)
        super().sendall(content, *flags)

zygote.socket.socket = Dying
zygote.main(*sys.argv[1:])
"""


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


async def test_a_worker_that_nobody_is_told_of_takes_no_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptors are those of the next one: two would take each other's messages."""
    begun = tmp_path / "begun"
    script = DYING.replace("BEGUN", repr(str(begun)))
    monkeypatch.setattr(zygote, "ZYGOTE", (sys.executable, "-c", script))
    with nothing_left():
        async with Zygote() as found:
            process = await spawned(found, lambda *_: None, lambda _: None, 1 << 20)
            untold: int = wire.PID.unpack(begun.read_bytes())[0]
            assert workers() == [process.pid]
            assert not psutil.pid_exists(untold)
            await within(process.end())


async def test_what_others_leave_behind_is_not_adopted() -> None:
    """ALSA's dsnoop does so: nobody would wait for it."""
    async with Zygote() as found:
        process = await spawned(found, lambda *_: None, lambda _: None, 1 << 20)
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await shell.communicate()
        orphan = psutil.Process(int(said))
        try:
            assert orphan.ppid() != os.getpid()
        finally:
            orphan.kill()
        await within(process.end())


def test_no_child_is_lost_where_their_ends_are_ignored() -> None:
    """As some leave it to what they start."""
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); import agent.cli.run;"
        "print(signal.getsignal(signal.SIGCHLD).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "SIG_DFL"
