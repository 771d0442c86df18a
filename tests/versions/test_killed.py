"""Killed before each write of each state, and begun again until it is quiet: one effect,
one result, a version that runs; judged by the state log.

Each case is a process, of the versions alone (small_agent.py); the whole agent is in tests/e2e.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.versions.folder import Folder
from agent.versions.forms import Book
from tests.outside import DEADLINE_S, ROOT
from tests.versions.site import Site, document
from tests.versions.small_agent import ANEW

GOOD, BAD = document(log_level="debug"), document(log_level="error")
COLD, DEADLY = document(jobs={"jobs_max": 7}), document(jobs={"jobs_max": 666})
COLD_BAD = document(jobs={"jobs_max": 7}, log_level="error")
STARTS_MAX = 12
KILLED = -signal.SIGKILL


class Processes:
    """Runs of the agent, each a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.versions.small_agent"]
        self._from = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *words: object) -> int:
        """One; how it ended."""
        assert self._from.stdin
        assert self._from.stdout
        self._from.stdin.write(json.dumps([*map(str, words[:-1]), words[-1]]) + "\n")
        self._from.stdin.flush()
        return int(self._from.stdout.readline())

    def end(self) -> None:
        self._from.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


@pytest.fixture
def device(tmp_path: Path, processes: Processes) -> "Killed":
    return Killed(tmp_path, processes)


class Killed:
    """A device whose agent is started again whenever it ends before all is told."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.site = Site(folder)
        self.log = folder / "log"
        self.ends: list[int] = []
        self._processes = processes
        (folder / "orders").mkdir()
        assert self.run() == 0  # the file is the first version
        self.ends.clear()

    def order(self, name: str, **args: Any) -> None:
        path = self.log.parent / "orders" / f"{name.replace('.', '-')}.json"
        path.write_text(json.dumps([name, args]))

    def run(self, kill_at: int = 0) -> int:
        places = self.site.file, self.site.state, self.log
        self.ends.append(self._processes.run(*places, kill_at))
        return self.ends[-1]

    def quiet(self, kill_at: int, run: int = 0) -> None:
        """Killed there, in this run; else begun again as systemd does."""
        while self.run(kill_at if len(self.ends) == run else 0) != 0:
            assert self.ends[-1] in (KILLED, ANEW)
            assert len(self.ends) < STARTS_MAX, "it does not come to rest"
        assert (KILLED in self.ends) is (kill_at > 0), "there is no such write"

    @property
    def book(self) -> Book:
        return Folder(self.site.kept).read()

    @property
    def result(self) -> str:
        (found,) = (self.log.parent / "orders").glob("*.result")
        return found.read_text()

    @property
    def runs_on(self) -> str:
        return self.log.read_text()

    def states(self) -> list[str]:
        """Of the version that was ordered; starts aside, of which there may be one or two."""
        return [s.state for s in self.book.steps if s.number == 2 and s.state != "started"]


# What is ordered, the states that it comes to, what it says and on what the agent runs then; and
# the writes before which it is killed, of the first run and of the one that it begins anew with:
# document, chosen, in force, confirmed or taken back; with a restart that, and its start, before.
Case = tuple[bytes, list[str], str, str, list[tuple[int, int]]]
STAYS, GOES = ["chosen", "in_force", "confirmed"], ["chosen", "in_force", "taken_back"]
CASES: dict[str, Case] = {
    "hot": (GOOD, STAYS, "all was well", "level debug 1000", [(0, i) for i in (0, 1, 2, 3, 4)]),
    "hot, and bad": (BAD, GOES, "link was not", "level info 1000", [(0, 4)]),
    "cold": (
        *(COLD, STAYS, "all was well", "level info 7"),
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)],
    ),
    "cold, and bad": (COLD_BAD, GOES, "link was not", "level info 1000", [(1, 3), (1, 4)]),
}


@pytest.mark.parametrize(
    ("case", "run", "kill_at"), [(name, *at) for name, one in CASES.items() for at in one[4]]
)
def test_an_apply_killed_at_each_write(device: Killed, case: str, run: int, kill_at: int) -> None:
    text, states, said, runs_on, _ = CASES[case]
    device.order("config.apply", document=text.decode(), confirm_s=1.0)
    device.quiet(kill_at, run)
    found = device.states()
    # A kill right behind `in_force` has the next start note it again.
    assert [s for i, s in enumerate(found) if found[i - 1 : i] != [s]] == states
    assert found.count("chosen") == 1, "one effect"
    assert said in device.result
    assert device.runs_on == runs_on
    assert device.book.trial is None
    kept = sorted(path.name for path in device.site.kept.glob("*.yaml"))
    assert kept == ["0001.yaml", "0002.yaml"]


@pytest.mark.parametrize("kill_at", range(4))
def test_a_rollback_killed_at_each_write(device: Killed, kill_at: int) -> None:
    device.site.file.write_bytes(GOOD)
    device.quiet(0)
    assert device.runs_on == "level debug 1000"
    device.ends.clear()
    device.order("config.rollback")
    device.quiet(kill_at)
    assert json.loads(device.result)["number"] == 1
    assert device.runs_on == "level info 1000"
    back = [s for s in device.book.steps if s.order]
    assert [s.state for s in back].count("chosen") == 1
    assert back[-1].state == "confirmed"


@pytest.mark.parametrize("kill_at", [0, 1])
def test_one_that_kills_the_agent_at_its_start_is_taken_back_at_the_third(
    device: Killed, kill_at: int
) -> None:
    device.order("config.apply", document=DEADLY.decode())
    assert [device.run(), device.run(), device.run()] == [ANEW, KILLED, KILLED]
    while device.run(kill_at if len(device.ends) == 3 else 0) != 0:
        assert device.ends[3:] == [KILLED], "amid the way back"
    assert device.states() == ["chosen", "taken_back"]
    assert "2 times" in device.result
    assert device.runs_on == "level info 1000"


@pytest.mark.parametrize("kill_at", range(1, 6))
def test_an_edit_killed_at_each_write_counts_once(device: Killed, kill_at: int) -> None:
    device.site.file.write_bytes(GOOD)
    device.quiet(kill_at)
    assert device.runs_on == "level debug 1000"
    assert [one.number for one in device.book.versions] == [1, 2]
