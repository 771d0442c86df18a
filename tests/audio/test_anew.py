"""A listener that begins anew for the watchdog, and one that owes nothing: its store refuses."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.errors import StoreError
from tests.audio.bed import Bed, running, soon
from tests.audio.test_listener import (
    SAMPLES,
    all_is_heard,
    do_not_overlap,
    feed,
    listener,
    segments,
    sound_of,
)
from tests.audio.test_listener import speech as speech  # the fixture

TIMES = 5


async def heard(folder: Path, speech: Any, times: int) -> list[tuple[int, int]]:
    """The spans of the segments of one recording, begun anew so often on the way."""
    folder.mkdir()
    async with Bed(folder) as bed:
        await feed(bed, await bed.recorder.begin("a", "1"), sound_of(SAMPLES[0]))
        ear = listener(bed, speech)
        async with running(ear):
            for _ in range(times):
                rows = ear.heard_rows
                await soon(lambda rows=rows: ear.heard_rows > rows, "it hears")
                assert await ear.restart("")
            await soon(lambda: all_is_heard(bed), "all is heard")
        found = await segments(bed)
        do_not_overlap(found)
        return [(one.start, one.samples) for one in found]


async def test_one_that_begins_anew_on_the_way_loses_nothing_and_hears_nothing_twice(
    tmp_path: Path, speech: Any
) -> None:
    at_once = await heard(tmp_path / "once", speech, 0)
    assert at_once
    assert await heard(tmp_path / "often", speech, TIMES) == at_once


async def test_one_that_hangs_owes_what_it_does_not_hear(tmp_path: Path, speech: Any) -> None:
    async with Bed(tmp_path) as bed:
        ear = listener(bed, speech)
        async with running(ear):
            await feed(bed, await bed.recorder.begin("a", "1"), sound_of(SAMPLES[0]))
            await soon(lambda: all_is_heard(bed), "all is heard")
            rows = ear.heard_rows
            ear.hang(3600.0)
            await feed(bed, await bed.recorder.begin("b", "2"), sound_of(SAMPLES[0]))
            assert ear.hears
            assert ear.heard_rows == rows
            await ear.restart("")
            await soon(lambda: all_is_heard(bed), "all is heard")


async def test_one_whose_store_refuses_is_no_part_that_stands_still(
    tmp_path: Path, speech: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries again each second, and says so; no process and no machine is restarted for it."""
    async with Bed(tmp_path) as bed:
        ear = listener(bed, speech)
        owed = list[bool]()
        refused = asyncio.Event()

        async def refuse(*_: object) -> None:
            refused.set()
            raise StoreError("no room", "make some")

        real, hold = bed.store.spool.keep, bed.conditions.hold
        monkeypatch.setattr(bed.store.spool, "keep", refuse)

        def noted(name: str, *more: Any) -> None:
            if name == "hearing_stopped":
                owed.append(ear.hears)
            hold(name, *more)

        monkeypatch.setattr(bed.conditions, "hold", noted)
        await feed(bed, await bed.recorder.begin("a", "1"), sound_of(SAMPLES[0]))
        async with running(ear):
            await soon(lambda: bed.condition("hearing_stopped"), "it says so")
            assert owed
            assert not any(owed)
            monkeypatch.setattr(bed.store.spool, "keep", real)
            await soon(lambda: all_is_heard(bed), "all is heard")
