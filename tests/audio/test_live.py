"""Live sound cannot wait: it is kept, or its loss is counted; a gap begins a new take."""

import os
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from agent import config
from agent.audio.live import Loop
from agent.records import RATE_HZ
from tests.audio.bed import SOURCE, Bed, running, soon

CHUNK = RATE_HZ // 2


def ramp(count: int, start: int = 0) -> np.ndarray:
    """Samples that tell their place."""
    return (np.arange(start, start + count) % 30_000).astype(np.int16)


def loop(bed: Bed, chunk_s: float = 0.05) -> Loop:
    """A loop source over the inbox."""
    settings = config.Loop(name=SOURCE, path=str(bed.inbox))
    return Loop(settings, chunk_s, bed.recorder, bed.conditions, bed.clock)


async def test_live_sound_is_kept_chunk_after_chunk_in_one_take(bed: Bed) -> None:
    sound = ramp(5 * CHUNK)
    for start in range(0, len(sound), CHUNK):
        await bed.recorder.accept_live("live", sound[start : start + CHUNK])
    await bed.recorder.end_live()
    rows = await bed.raw()
    assert np.array_equal(await bed.sound(), sound)
    assert len({raw.take for _, raw, _, _ in rows}) == 1
    assert [raw.end for _, raw, _, _ in rows] == [False] * 5 + [True]
    await bed.recorder.accept_live("live", ramp(CHUNK))
    assert (await bed.raw())[-1][1].offset == 0, "what comes after the end is a new take"


async def test_a_restart_begins_a_new_take(bed: Bed) -> None:
    await bed.recorder.accept_live("live", ramp(CHUNK))
    await bed.recorder_of(SOURCE).accept_live("live", ramp(CHUNK))
    rows = await bed.raw()
    assert len({raw.take for _, raw, _, _ in rows}) == 2
    assert [raw.offset for _, raw, _, _ in rows] == [0, 0]


async def test_refused_live_sound_is_counted_in_the_ledger_and_a_new_take_begins(
    small: Callable[[int], Bed],
) -> None:
    async with small(0) as bed:
        kept = 0
        while bed.condition("store_full") is None:
            await bed.recorder.accept_live("live", ramp(CHUNK))
            kept = len(await bed.raw())
        for _ in range(4):
            await bed.recorder.accept_live("live", ramp(CHUNK))
        assert len(await bed.raw()) == kept > 0
        await bed.make_room()
        await bed.recorder.accept_live("live", ramp(CHUNK))
        assert bed.condition("store_full") is None
        balance = await bed.balance()
        assert balance.dropped == {"processed": kept, "full": 5}
        assert (balance.produced, balance.held) == (kept + 6, 1)
        assert (await bed.raw())[0][1].offset == 0, "sound after a gap is a new take"


async def test_every_refusal_is_in_the_ledger_when_the_call_returns(
    small: Callable[[int], Bed],
) -> None:
    """There may be no next call: the source may fall silent, the agent may be stopped."""
    async with small(0) as bed:
        while bed.condition("store_full") is None:
            await bed.recorder.accept_live("live", ramp(CHUNK))
        assert (await bed.balance()).dropped == {"full": 1}


async def test_a_loop_plays_its_recordings_one_after_the_other_and_again(bed: Bed) -> None:
    sounds = {"a.wav": ramp(2000), "b.flac": ramp(1000, 5000)}
    for name, sound in sounds.items():
        soundfile.write(bed.inbox / name, sound, RATE_HZ)
    (bed.inbox / "notes.txt").write_text("not to be played")

    async def ends() -> int:
        return sum(raw.end for _, raw, _, _ in await bed.raw())

    async with running(loop(bed)):
        await soon(lambda: enough(ends), "all is played twice")
    takes: dict[int, list[np.ndarray]] = {}
    names: dict[int, str] = {}
    for _, raw, _, pcm in await bed.raw():
        takes.setdefault(raw.take, []).append(np.frombuffer(pcm, "<i2"))
        names[raw.take] = raw.name
    assert list(names.values())[:4] == ["a.wav", "b.flac", "a.wav", "b.flac"]
    for take, pieces in list(takes.items())[:4]:
        assert np.array_equal(np.concatenate(pieces), sounds[names[take]])
    assert bed.conditions.all() == []


async def enough(ends: Callable) -> bool:
    return await ends() >= 4


async def test_a_loop_without_recordings_is_a_condition(bed: Bed) -> None:
    async with running(loop(bed)):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
    assert "no recordings" in held.cause
    assert "WAV" in held.remedy


async def test_a_loop_over_a_folder_that_is_not_there_is_a_condition(bed: Bed) -> None:
    bed.inbox.rmdir()
    async with running(loop(bed)):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
    assert str(bed.inbox) in held.cause
    assert held.remedy


async def test_a_loop_that_breaks_off_in_a_recording_ends_its_take(bed: Bed) -> None:
    """What is played next must not be taken for the sound that followed."""
    noise = np.random.default_rng(1).integers(-9000, 9000, 160_000).astype(np.int16)
    soundfile.write(bed.inbox / "a.flac", noise, 96_000)
    whole = (bed.inbox / "a.flac").read_bytes()
    (bed.inbox / "a.flac").write_bytes(whole[: int(len(whole) * 0.9)])
    async with running(loop(bed)):
        await soon(lambda: bed.condition("source_unreadable"), "it is said")
        before = await bed.sound()
        assert len(before) > 0, "it was refused before anything of it was played"
        (bed.inbox / "a.flac").unlink()
        soundfile.write(bed.inbox / "b.wav", ramp(4000), RATE_HZ)
        await soon(lambda: named(bed, "b.wav"), "the next recording is played under its name")
    assert np.array_equal(await bed.sound("a.flac"), before)


async def named(bed: Bed, name: str) -> bool:
    """Whether some of this recording is held, under its own name."""
    return any(raw.name == name for _, raw, _, _ in await bed.raw())


async def test_a_loop_plays_on_behind_what_is_no_recording(bed: Bed) -> None:
    (bed.inbox / "a.wav").write_text("not sound")
    (bed.inbox / "b.wav").mkdir()
    os.mkfifo(bed.inbox / "c.wav")
    (bed.inbox / "d.wav").symlink_to("d.wav")
    soundfile.write(bed.inbox / "E.WAV", ramp(2000), RATE_HZ)
    async with running(loop(bed)):
        await soon(lambda: named(bed, "E.WAV"), "the good one is played")
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
    assert "a.wav" in held.cause


async def test_a_loop_of_no_sound_rests(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(bed.inbox / "a.wav", ramp(1), RATE_HZ)
    caplog.set_level("INFO")
    async with running(loop(bed)):
        await soon(lambda: several(bed, 3), "it is played again and again")
    assert caplog.text.count("playing a.wav") <= 4


async def several(bed: Bed, count: int) -> bool:
    return len({raw.take for _, raw, _, _ in await bed.raw()}) >= count
