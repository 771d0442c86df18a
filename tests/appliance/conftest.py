"""The table at the end: which fault, what became of it, and how long that took."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.appliance.image import build
from tests.appliance.image.build import Image

ROWS: list[tuple[str, str, str]] = []
Tell = Callable[..., None]
ASKED = "HOLDFAST_APPLIANCE"


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
def told() -> Iterator[Tell]:
    """`told(fault, what happened)` adds a row, with the time since the last one."""
    began = time.monotonic()

    def tell(fault: str, happened: str, detail: str = "") -> None:
        nonlocal began
        now = time.monotonic()
        ROWS.append((fault, happened, detail or f"{now - began:.0f} s"))
        began = now

    yield tell
