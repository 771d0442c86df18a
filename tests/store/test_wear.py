"""What is kept about wear: payload exact by stream, totals over restarts."""

import asyncio
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreFull
from agent.records import Range, RecordType
from agent.store.intake import New
from agent.store.store import Store
from agent.store.wear import Payload, Written


def opened(folder: Path, bytes_max: int = 1 << 30) -> Store:
    return Store(Settings(path=str(folder / "s.db"), bytes_max=bytes_max), Clock())


async def test_payload_is_what_producers_brought_by_stream_whatever_became_of_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        some = [New(RecordType.SEGMENT, b"{}", bytes(100)), New(RecordType.SEGMENT, b"{}")]
        await asyncio.gather(*(store.intake.append("a", some) for _ in range(3)))
        take = await store.spool.begin("mic", "x", "1")
        await store.spool.accept(take, bytes(3200))
        await store.outbox.lease(100, 10_000)
        await store.outbox.acknowledge((store.epoch, "a"), [Range(1, 4)])
        payload = await store.wear.payload()
        assert payload["a"] == Payload(104, 312)
        assert payload["mic.raw"].taken_bytes == payload["mic.raw"].held_bytes > 3200
    async with opened(tmp_path) as store:
        assert await store.wear.payload() == payload


async def test_what_was_refused_is_no_payload(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1 << 20) as store:
        await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")])
        with pytest.raises(StoreFull):
            await store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(2 << 20))])
        assert await store.wear.payload() == {"a": Payload(2, 2)}


async def test_the_totals_survive_a_restart(tmp_path: Path) -> None:
    totals = {"process": Written(5, 1.5), "device": Written(1 << 50, 9.25)}
    async with opened(tmp_path) as store:
        assert await store.wear.noted() == {}
        await store.wear.note({"process": Written(1, 1.0)})
        await store.wear.note(totals)
    async with opened(tmp_path) as store:
        assert await store.wear.noted() == totals
