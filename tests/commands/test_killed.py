"""Killed, or refused by its store, in each state of a command: one effect, one result, told.

Mender's way: the process ends itself in the state at hand, is started again until it is quiet, and
what it did is read from its log of states.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.device import AROUND, lines
from tests.outside import ROOT

STARTS_MAX = 20
IN_ALL = [f"{name}:{when}" for name in AROUND[:-1] for when in ("before", "after")]
KILLED, FAILED = [*IN_ALL, "effect:before", "effect:after"], IN_ALL
WAYS = [*(("kill", state) for state in KILLED), *(("fail", state) for state in FAILED)]
if "HOLDFAST_LONG" not in os.environ:  # a start takes a second
    WAYS = random.Random(int(os.environ.get("HOLDFAST_SEED", "8"))).sample(WAYS, 6)
ORDERS = [
    {"id": "a", "name": "surely", "args": {"thing": "a"}},
    {"id": "b", "name": "once", "args": {"thing": "b"}},
    {"id": "c", "name": "nosuch"},
]
TO_CANCEL = [
    {"id": "h", "name": "hold", "args": {"thing": "c"}},
    {"id": "b", "name": "once", "args": {"thing": "b"}},
    {"id": "c", "name": "commands.cancel", "args": {"id": "b"}},
]
CANCELLED = [
    *((how, f"cancel:{when}") for how in ("kill", "fail") for when in ("before", "after")),
    *(("kill", state) for state in ("accept:after", "begin:after", "end:before", "end:after")),
]
if "HOLDFAST_LONG" not in os.environ:
    CANCELLED = random.Random(8).sample(CANCELLED, 3)


def played(
    folder: Path,
    state: str,
    times: int,
    how: str,
    orders: list[dict[str, Any]] = ORDERS,
    module: str = "tests.commands.device",
) -> tuple[list[str], dict[str, list[str]]]:
    """The log of states, and by id what was told of its end."""
    folder.joinpath("orders").write_text("".join(f"{json.dumps(one)}\n" for one in orders))
    order = [sys.executable, "-m", module, str(folder), state, str(times), how]
    for _ in range(STARTS_MAX):
        done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        pytest.fail(f"it never came to rest: {lines(folder / 'states')}")
    told: dict[str, list[str]] = {}
    for line in lines(folder / "results"):
        name, _, word = line.partition(" ")
        told.setdefault(name, []).append(word.strip())
    return lines(folder / "states"), told


@pytest.mark.parametrize(("how", "state"), WAYS)
def test_in_each_state_there_is_one_effect_and_one_result(
    tmp_path: Path, state: str, how: str
) -> None:
    states, told = played(tmp_path, state, 2, how)
    effects = lines(tmp_path / "effects")
    struck = lines(tmp_path / "struck")
    assert struck, f"{state} was never reached: {states}"
    assert effects.count("a") == 1
    assert effects.count("b") <= 1
    assert set(told["a"]) == {"succeeded"}
    assert set(told["b"]) <= {"succeeded", "interrupted interrupted"}
    assert len(set(told["b"])) == 1, "its end does not change"
    if told["b"] == ["succeeded"]:
        assert effects.count("b") == 1
    assert set(told["c"]) == {"refused unknown_command"}
    marks = [states.index(mark) for mark in ("accept:before", "begin:before", "end:before")]
    assert marks == sorted(marks), states
    assert all(lines(tmp_path / "acked").count(json.dumps(one)) == 1 for one in ORDERS)


@pytest.mark.parametrize(("how", "state"), CANCELLED)
def test_in_each_state_one_that_is_cancelled_has_no_effect(
    tmp_path: Path, state: str, how: str
) -> None:
    """What is cancelled waits behind one that waits for that."""
    states, told = played(tmp_path, state, 2, how, TO_CANCEL)
    assert lines(tmp_path / "struck"), f"{state} was never reached: {states}"
    assert lines(tmp_path / "effects") == []
    assert set(told["b"]) == {"interrupted cancelled"}
    assert set(told["c"]) == {"succeeded"}
    assert set(told["h"]) == {"succeeded"}


def test_one_that_ends_the_agent_each_time_is_given_up(tmp_path: Path) -> None:
    _, told = played(tmp_path, "effect:before", 5, "kill")
    assert told["a"] == ["failed failed"]
    assert told["b"] == ["succeeded"]
