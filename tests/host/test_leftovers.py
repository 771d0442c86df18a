"""Groups of an agent that was killed go when the next one starts; those of one that lives stay."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from agent.host.cells import Cells
from agent.host.limits import Limits
from tests.api import composed
from tests.host.children import needs_v1, v1_places
from tests.outside import DEADLINE_S, ROOT, until

# An agent with one child, which does not die with it.
_AGENT = """
import subprocess, sys
from agent.host.cells import Cells
from agent.host.limits import Limits
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
Cells().open("sound", Limits((0,), 0.5, 1 << 26)).admit(child.pid)
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def agent() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _AGENT]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    try:
        yield process, child
    finally:
        process.kill()
        process.communicate()
        if child.is_running():
            child.kill()


def groups(pid: int) -> list[Path]:
    bases = set(v1_places().values())
    return [one for base in bases for one in base.glob(f"holdfast-{pid}-*")]


@pytest.fixture(autouse=True)
def v1() -> None:
    needs_v1()


def test_what_a_killed_agent_left_goes_with_the_child_that_outlived_it() -> None:
    with agent() as (first, child):
        assert len(groups(first.pid)) == 4
        first.kill()
        first.wait(DEADLINE_S)
        assert child.is_running()
        cells = Cells()
        until(lambda: not child.is_running() or child.status() == "zombie", "the child ended")
        until(lambda: cells.open("next", Limits()).close() or not groups(first.pid), "they went")


def test_an_agent_that_lives_keeps_its_groups() -> None:
    with agent() as (other, child):
        had = groups(other.pid)
        Cells().open("sound", Limits()).close()
        assert groups(other.pid) == had
        assert child.is_running()
    Cells()
    until(lambda: Cells() and not groups(other.pid), "its groups went with it")


def test_an_agent_that_never_runs_makes_none() -> None:
    composed.document()
    assert groups(os.getpid()) == []


def test_who_cannot_look_takes_nobody_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with agent() as (other, child):
        had = groups(other.pid)
        with monkeypatch.context() as patch:
            patch.setattr("agent.host.groups._ticks", none_left)
            Cells()
        assert groups(other.pid) == had
        assert child.is_running()
    until(lambda: Cells() and not groups(other.pid), "its groups went with it")


def test_an_id_that_is_used_again_is_another_process() -> None:
    with agent() as (other, _):
        base = v1_places()["pids"]
        namesake = base / f"holdfast-{other.pid}-1-1-sound"  # it started in the boot's first tick
        namesake.mkdir()
        Cells()
        assert not namesake.exists()
        assert len(groups(other.pid)) == 4
    until(lambda: Cells() and not groups(other.pid), "its groups went with it")


def test_groups_of_others_are_not_touched() -> None:
    foreign = v1_places()["pids"] / "holdfast-of-somebody"
    foreign.mkdir()
    try:
        Cells()
        assert foreign.exists()
    finally:
        foreign.rmdir()
