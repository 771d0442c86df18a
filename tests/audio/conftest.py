"""A real store for the sources and the listener, and what is in it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.audio.bed import Bed


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], uvloop.Loop]]:
    """The loop that the agent runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """A store of the usual size."""
    async with Bed(tmp_path) as opened:
        yield opened


@pytest.fixture
def small(tmp_path: Path) -> Callable[[int], Bed]:
    """A store that has room for so many bytes more than an empty one takes."""
    return lambda room_bytes: Bed(tmp_path, Bed.EMPTY_BYTES + room_bytes)
