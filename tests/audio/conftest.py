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
async def small(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Bed]:
    """A store that has room for so many bytes, and a little, more than an empty one takes."""
    async with Bed(tmp_path_factory.mktemp("empty")) as empty:
        taken = await empty.store.used_bytes()
    return lambda room_bytes: Bed(tmp_path, taken + Bed.LITTLE_BYTES + room_bytes)
