"""A loop that others may have begun anew."""

import asyncio

import pytest

from agent.tasks import Anew
from tests.sync.rig import eventually


class Loop:
    """Counts how often it began and ended, and does what it is told."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.fault: Exception | None = None
        self.breaks = asyncio.Event()
        self.anew = Anew(self._work)

    async def _work(self) -> None:
        self.begun += 1
        try:
            await self.breaks.wait()
            assert self.fault
            raise self.fault
        finally:
            self.ended += 1


async def test_it_begins_anew_and_whoever_runs_it_goes_on() -> None:
    loop = Loop()
    await loop.anew.restart()  # it has not begun: nothing is to be ended
    async with asyncio.TaskGroup() as group:
        running = group.create_task(loop.anew.run())
        await eventually(lambda: loop.begun == 1, "it works")
        await loop.anew.restart()
        assert loop.ended == 1
        await eventually(lambda: loop.begun == 2, "it began anew")
        assert not running.done()
        running.cancel()
    assert running.cancelled()
    assert (loop.begun, loop.ended) == (2, 2), "whoever ends it ends its work, too"


async def test_what_it_raises_is_raised() -> None:
    loop = Loop()
    loop.fault = ValueError("broken")
    running = asyncio.create_task(loop.anew.run())
    loop.breaks.set()
    with pytest.raises(ValueError, match="broken"):
        await running
    assert loop.begun == 1


async def test_one_that_hangs_does_nothing_until_it_begins_anew() -> None:
    loop = Loop()
    running = asyncio.create_task(loop.anew.run())
    await eventually(lambda: loop.begun == 1, "it works")
    loop.anew.hang(3600.0)
    await eventually(lambda: loop.ended == 1, "it stands still")
    await loop.anew.restart()
    await eventually(lambda: loop.begun == 2, "it works again")
    loop.anew.hang(0.0)
    await eventually(lambda: loop.begun == 3, "it works after that time, too")
    running.cancel()
    await asyncio.wait([running])
