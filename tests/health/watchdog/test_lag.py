"""A loop that is held up: again and again, once, or not by its own fault."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.health.watchdog.lag import LATE_S, TURN_S, WINDOW_S, Lag
from tests.outside import DEADLINE_S, ROOT

PERIOD_S = 2.0


def course(*passed_s: float) -> list[int]:
    """How much it has moved after each of these looks."""
    lag, now_s, found = Lag(Clock(), PERIOD_S), 0.0, []
    for one in passed_s:
        now_s += one
        lag.looked(now_s, one)
        found.append(lag._calm)
    return found


def test_one_that_comes_round_moves() -> None:
    assert course(*[PERIOD_S] * 4) == [1, 2, 3, 4]


def test_a_start_that_took_long_is_no_turn() -> None:
    class Later(Clock):
        at_s = 100.0

        def monotonic(self) -> float:
            return self.at_s

    clock = Later()
    lag = Lag(clock, PERIOD_S)
    lag._ran_s = 75.0  # the thread has run all the time
    clock.at_s += 75.0
    lag.read()
    assert lag.late_s == 0.0
    lag._ran_s += 9.0
    clock.at_s += 9.0
    lag.read()
    assert lag.late_s == 9.0 - 2 * PERIOD_S


def test_one_that_is_held_up_again_and_again_does_not() -> None:
    assert course(2.0, 16.0, 16.0, 2.0, 16.0) == [1, 2, 2, 2, 2]


def test_one_long_turn_is_forgiven_and_what_is_long_ago_forgotten() -> None:
    assert course(20.0, 2.0, 2.0) == [1, 2, 3]
    rest = [PERIOD_S] * int(WINDOW_S)
    assert course(20.0, 20.0, *rest)[-1] > course(20.0, 20.0)[-1]


HELD_UP = """
import ctypes, sys, time
from agent.clock import Clock
from agent.health.watchdog.lag import Lag

how = {
    "spinning": lambda end: [None for _ in iter(lambda: time.monotonic() < end, False)],
    "in a system call": lambda end: time.sleep(end - time.monotonic()),
    "stopped": lambda end: (print("stop me", flush=True), time.sleep(0.2)),
}[sys.argv[1]]
with Lag(Clock(), 0.2) as lag:
    lag.read()
    how(time.monotonic() + 4)
    lag.read()
    print(f"late {lag.late_s}", flush=True)
"""


@pytest.mark.parametrize("how", ["spinning", "in a system call", "stopped"])
def test_time_counts_in_which_the_process_ran(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD_UP, how], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        if how == "stopped":
            assert process.stdout.readline() == "stop me\n"
            os.kill(process.pid, signal.SIGSTOP)
            wait_for_stop(process.pid)
            time.sleep(4)  # it is what is measured
            os.kill(process.pid, signal.SIGCONT)
        said = process.communicate(timeout=DEADLINE_S)[0]
    late_s = float(said.removeprefix("late "))
    assert (late_s > 2.0) == (how != "stopped"), late_s
    assert late_s < LATE_S


def wait_for_stop(pid: int) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until_s
        time.sleep(TURN_S / 100)
