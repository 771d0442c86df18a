"""The table at the end: which fault, what became of it, and how long that took."""

import os
import random
import time
from typing import Any

import pytest

from tests.appliance.image import build
from tests.appliance.image.build import Image

ROWS: list[tuple[str, str, str]] = []
ASKED = "HOLDFAST_APPLIANCE"


class Tell:
    """`told(fault, what happened)` adds a row, with the time since the last one, or since `begins`.

    It is printed at once, too: what takes an hour is to be watched (`pytest -s`).
    """

    def __init__(self) -> None:
        self.begins()

    def begins(self) -> None:
        """What went by so far was not the fault's."""
        self._began_s = time.monotonic()

    def __call__(self, fault: str, happened: str) -> None:
        """Since the last one."""
        took = f"{time.monotonic() - self._began_s:.0f} s"
        ROWS.append((fault, happened, took))
        print(f"\n{fault}: {happened}: {took}", flush=True)
        self.begins()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seconds are of this host, under emulation."""
    if ROWS:
        terminalreporter.write_line("\n| fault | what happened | time |\n|---|---|---|")
    for row in ROWS:
        terminalreporter.write_line(f"| {' | '.join(row)} |")


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("appliance") and os.environ.get(ASKED) != "1":
        pytest.skip("boots machines, for minutes: `make appliance-test`")


@pytest.fixture(scope="session")
def image() -> Image:
    """Made where it is not there yet."""
    if os.environ.get(ASKED) != "1":
        pytest.skip("boots machines, for minutes: `make appliance-test`")
    if lacks := build.missing():
        pytest.fail(f"an appliance cannot be made here: {lacks}")
    return build.build()


@pytest.fixture
def told() -> Tell:
    """As Tell says."""
    return Tell()


@pytest.fixture
def chance() -> random.Random:
    """Its seed is HOLDFAST_SEED, or printed."""
    seed = int(os.environ.get("HOLDFAST_SEED", time.time_ns() % 10**9))
    print(f"HOLDFAST_SEED={seed}")
    return random.Random(seed)
