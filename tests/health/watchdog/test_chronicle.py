"""What is kept of what the watchdog did."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.watchdog.chronicle import LAST_MAX, Chronicle, Noted
from agent.health.watchdog.watchdog import Event
from tests.sync.rig import eventually


def event(number: int) -> Event:
    return Event("domain d", "instance", "it stood still", f"done {number}")


class Kept:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults: list[StoreError] = []

    async def append(self, bodies: Sequence[bytes]) -> None:
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop()
        self.bodies += bodies


def begun(chronicle: Chronicle) -> "asyncio.Task[None]":
    async def run() -> None:
        await asyncio.gather(chronicle.run(), chronicle.file.run())

    return asyncio.create_task(run())


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_is_noted_is_kept_and_sent_and_there_after_a_restart(tmp_path: Path) -> None:
    kept, path = Kept(), tmp_path / "watchdog.json"
    chronicle = Chronicle(path, kept.append, Clock())
    running = begun(chronicle)
    for number in range(3):
        chronicle.note(event(number))
    await eventually(lambda: len(kept.bodies) == 3 and path.exists(), "kept and sent")
    await end(running)
    assert [msgspec.json.decode(one, type=Noted).event for one in kept.bodies] == [
        event(number) for number in range(3)
    ]
    again = Chronicle(path, kept.append, Clock())
    assert again.last() == chronicle.last()
    assert [one.event for one in again.last()] == [event(2), event(1), event(0)]


async def test_a_store_that_hangs_keeps_nothing_from_the_file(tmp_path: Path) -> None:
    kept, path = Kept(), tmp_path / "watchdog.json"
    kept.gate.clear()
    chronicle = Chronicle(path, kept.append, Clock())
    running = begun(chronicle)
    for number in range(LAST_MAX + 10):
        chronicle.note(event(number))
    await eventually(path.exists, "it is written")
    assert len(chronicle.last()) == LAST_MAX
    kept.gate.set()
    await eventually(lambda: kept.bodies, "it is sent")
    await eventually(lambda: len(kept.bodies) >= LAST_MAX, "all that is known is sent")
    await end(running)


async def test_what_a_store_refuses_comes_with_the_next_event(tmp_path: Path) -> None:
    kept = Kept()
    kept.faults.append(StoreError("full"))
    chronicle = Chronicle(tmp_path / "watchdog.json", kept.append, Clock())
    running = begun(chronicle)
    chronicle.note(event(0))
    await eventually(lambda: not kept.faults, "it was asked")
    chronicle.note(event(1))
    await eventually(lambda: len(kept.bodies) == 2, "both are sent")
    await end(running)


async def test_what_a_store_never_took_is_sent_by_the_next_agent_and_once(tmp_path: Path) -> None:
    kept, path = Kept(), tmp_path / "watchdog.json"
    kept.gate.clear()
    chronicle = Chronicle(path, kept.append, Clock())
    running = begun(chronicle)
    chronicle.note(event(0))
    await chronicle.file.kept()
    await end(running)
    kept.gate.set()
    for _ in range(2):
        again = Chronicle(path, kept.append, Clock())
        running = begun(again)
        await eventually(lambda: kept.bodies, "the next one sends it")
        await eventually(lambda again=again: again.last()[0].sent, "and knows")
        await again.file.kept()
        await end(running)
    assert len(kept.bodies) == 1


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff", b'[{"at_us": "x"}]', bytes(2 << 20)])
async def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "watchdog.json"
    path.write_bytes(content)
    assert Chronicle(path, Kept().append, Clock()).last() == []
