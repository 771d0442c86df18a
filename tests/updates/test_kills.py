"""kill -9 before everything that becomes durable, then begun again until it is quiet.

One effect, one result, a version that runs: whatever point it was.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from agent.updates.trials import Trial, Trials
from bench.models import not_numbers
from tests.inference.catalog.repository import install, linear
from tests.inference.domains.rig import FAULTY, marked, put
from tests.outside import DEADLINE_S, ROOT
from tests.updates.site import Journal, drop, first

LONG = os.environ.get("HOLDFAST_LONG") == "1"


class Case(NamedTuple):
    """A command, what it leads to, and the points on its way."""

    verb: str
    args: dict[str, Any]
    states: list[str]
    version: int
    there: set[str]
    points: list[str]


class Agents:
    """Begins agents, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.updates.child"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{FAULTY}"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, case: Case, at: str = "") -> int:
        """Its exit status."""
        assert self._process.stdin
        assert self._process.stdout
        order = {"folder": str(folder), "verb": case.verb, "args": case.args, "at": at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.stdout.close()
        self._process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    found = Agents()
    yield found
    found.end()


INSTALL = ["fetching", "unpacking", "placing", "placed", "activating"]


def a_good_version(folder: Path) -> Case:
    first(folder)
    order = drop(folder, put(folder / "made", 2))
    points = [
        *("note fetching", "note unpacking", "note placing", "replace models.json 1", "rename in"),
        *("note placed", "note activating", "replace trials.json activating"),
        *("replace models.json 2", "replace trials.json watched", "replace trials.json passed"),
        "note succeeded",
    ]
    states, there = [*INSTALL, "succeeded"], {"m/1", "m/2"}
    return Case("model.install", {**order, "activate": True}, states, 2, there, points)


def a_version_that_kills_its_worker(folder: Path) -> Case:
    """In its golden outputs, once it serves: its second process; whatever pool it is in."""
    first(folder)
    (folder / "models.json").write_text('{"m": {"version": 1}}')
    made = install(folder / "made", marked(linear(weight=2.0), "run 9"), version=2)
    shutil.copytree(made, folder / "models/m/2")
    points = [
        *("note activating", "replace trials.json activating", "replace models.json 2"),
        *("replace trials.json watched", "replace trials.json taking_back"),
        *("replace models.json 1", "replace trials.json taken_back", "note failed"),
    ]
    return Case(
        *("model.activate", {"name": "m"}, ["activating", "failed"], 1, {"m/1", "m/2"}, points)
    )


def a_rollback(folder: Path) -> Case:
    first(folder, 1, 2)
    (folder / "models.json").write_text('{"m": {"version": 2, "previous": 1}}')
    points = ["note rolling_back", "replace models.json 1", "note succeeded"]
    states = ["rolling_back", "succeeded"]
    return Case("model.rollback", {"name": "m"}, states, 1, {"m/1", "m/2"}, points)


def a_removal(folder: Path) -> Case:
    first(folder, 1, 2)
    (folder / "models.json").write_text('{"m": {"version": 2, "previous": 1}}')
    points = ["note removing", "replace models.json 2", "rename models", "note succeeded"]
    states = ["removing", "succeeded"]
    return Case("model.remove", {"name": "m", "version": 1}, states, 2, {"m/2"}, points)


def a_refusal(folder: Path) -> Case:
    """r-1 activated version 2, which passed; then another one is not admitted."""
    first(folder, 1, 2)
    install(folder / "models", not_numbers(), version=3)
    (folder / "models.json").write_text('{"m": {"version": 2, "previous": 1}}')
    known = Trial(command="r-1", name="m", version=2, former=1, probation_s=1.0, left_s=0.0)
    Trials(folder / "trials.json").note(replace(known, state="passed"))
    points = [
        *("replace trials.json activating", "replace trials.json passed", "note failed"),
    ]
    there = {"m/1", "m/2", "m/3"}
    return Case("model.activate", {"name": "m"}, ["activating", "failed"], 2, there, points)


CASES = [a_good_version, a_version_that_kills_its_worker, a_rollback, a_removal]


@pytest.mark.parametrize("make", CASES)
def test_killed_at_each_point_in_turn_it_has_one_effect(
    make: Callable[[Path], Case], tmp_path: Path, agents: Agents
) -> None:
    case = make(tmp_path)
    for point in case.points:
        assert agents.run(tmp_path, case, point) == -signal.SIGKILL, point
    judge(tmp_path, case, agents.run(tmp_path, case), "at each point")


@pytest.mark.parametrize("make", CASES)
def test_killed_at_no_or_one_point_it_has_one_effect(
    make: Callable[[Path], Case], tmp_path: Path, agents: Agents
) -> None:
    """HOLDFAST_LONG=1: at each; else at none, which shows that no point is left out above."""
    points = make(tmp_path / "all").points if LONG else []
    for number, point in enumerate(["", *points]):
        folder = tmp_path / str(number)
        case = make(folder)
        if point:
            assert agents.run(folder, case, point) == -signal.SIGKILL, point
        code = agents.run(folder, case)
        if not point:
            assert (folder / "points").read_text().splitlines() == case.points
        judge(folder, case, code, f"at {point}")


def test_killed_at_each_point_of_what_came_to_nothing_the_way_back_before_it_is_known(
    tmp_path: Path, agents: Agents
) -> None:
    case = a_refusal(tmp_path)
    for point in case.points:
        assert agents.run(tmp_path, case, point) == -signal.SIGKILL, point
    judge(tmp_path, case, agents.run(tmp_path, case), "at each point")
    (tmp_path / "c-1.log").unlink()
    back = case._replace(verb="model.rollback", args={"of": "r-1"})
    assert agents.run(tmp_path, back) == 101, "version 1 serves"


def judge(folder: Path, case: Case, code: int, where: str) -> None:
    """What is there at the end, wherever it was killed."""
    journal = Journal(folder / "c-1.log")
    assert journal.result, where
    assert journal.states[-1] == case.states[-1], (where, journal.result)
    assert list(dict.fromkeys(journal.states)) == case.states, where
    assert code == 100 + case.version, where
    if case.verb == "model.install":
        assert journal.result["result"]["installed"], where
        assert journal.result["result"]["proved"], where
    there = {f"{one.parent.name}/{one.name}" for one in (folder / "models/m").iterdir()}
    assert there == case.there, where
    assert not (folder / "models/.staging").exists(), where
    reached = (folder / "points").read_text().splitlines()
    # A point that was survived was an effect.
    survived = [
        one for one, then in zip(reached, [*reached[1:], ""], strict=True) if then != "killed"
    ]
    for effect in case.points:
        if effect.startswith(("rename", "replace models.json", "note succeeded", "note failed")):
            assert survived.count(effect) == 1, (where, effect)
