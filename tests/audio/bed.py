"""What the tests of sound run on: the real store, conditions, and parts running over both."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from agent import config
from agent.audio.recorder import Recorder
from agent.audio.recordings import Folder
from agent.clock import Clock
from agent.health.conditions import Condition, Conditions
from agent.records import Balance, Position
from agent.store.spool import Heard
from agent.store.store import Store
from tests.outside import DEADLINE_S

SOURCE = "inbox"


class Part(Protocol):
    """Anything that the agent runs for ever."""

    async def run(self) -> None: ...


class Bed:
    """An open store in a folder, and what a source needs beside it."""

    LITTLE_BYTES = 16 * 1024  # what a first stretch takes beside its sound
    CLOCK = Clock()

    def __init__(self, folder: Path, bytes_max: int = 2 * 1024**3) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.clock = self.CLOCK
        self.conditions = Conditions(self.clock)
        self.arrived = asyncio.Event()
        self.store = Store(
            config.Store(path=str(folder / "holdfast.db"), bytes_max=bytes_max), self.clock
        )
        self.recorder = self.recorder_of(SOURCE)

    async def __aenter__(self) -> Self:
        self.inbox.mkdir(exist_ok=True)
        await self.store.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        faults = [] if kind else await self.store.ledger.faults()
        await self.store.__aexit__(kind, error, tb)
        assert faults == [], "the ledger does not balance at the end"

    def recorder_of(self, source: str) -> Recorder:
        """A fresh recorder, as after a restart."""
        return Recorder(source, self.store.spool, self.conditions, self.clock, self.arrived)

    def watch(self, settle_s: float = 0.05) -> Folder:
        """A folder source on the inbox."""
        rules = config.Folder(
            name=SOURCE, path=str(self.inbox), poll_s=0.02, settle_s=settle_s, keep="segments"
        )
        return Folder(rules, self.recorder, self.conditions)

    async def raw(self, source: str = SOURCE) -> list[Heard]:
        """All raw records that are held."""
        return await self.store.spool.waiting(source, 1, 1_000_000)

    async def sound(self, name: str | None = None) -> np.ndarray:
        """The held raw sound, of one recording if named; there must be no gap in it."""
        pieces = [row for row in await self.raw() if name is None or row[1].name == name]
        ends: dict[int, int] = {}
        for _, raw, _, pcm in pieces:
            assert raw.offset == ends.get(raw.take, raw.offset), "a gap or a repeat within a take"
            assert raw.samples == len(pcm) // 2
            ends[raw.take] = raw.offset + raw.samples
        return np.concatenate(
            [np.zeros(0, np.int16), *(np.frombuffer(p[3], "<i2") for p in pieces)]
        )

    async def balance(self, source: str = SOURCE) -> Balance:
        """The ledger of a source's raw stream."""
        return (await self.store.ledger.balances()).get(f"{source}.raw", Balance(0, 0, 0, {}))

    async def make_room(self) -> None:
        """Let go of all raw audio, as the listener does once it has been heard."""
        rows = await self.raw()
        position = Position(take=rows[-1][1].take, next_seq=rows[-1][0] + 1)
        await self.store.spool.keep(SOURCE, [], position, "segments")

    def condition(self, name: str) -> Condition | None:
        """What is said of the source, if it holds."""
        return next((c for c in self.conditions.all() if c.name == name), None)


@asynccontextmanager
async def running(*parts: Part) -> AsyncIterator[None]:
    """Run parts as the agent does: an unexpected exception in one ends the test at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in parts]
        yield
        for task in tasks:
            task.cancel()


async def soon(question: Callable[[], Any | Awaitable[Any]], what: str) -> Any:
    """Ask until the answer is true, while the parts run on; fail with `what` at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        answer = question()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        await asyncio.sleep(0.005)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")
