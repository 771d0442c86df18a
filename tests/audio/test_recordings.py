"""Recordings in a folder: each is taken in once and whole, or refused with its reason."""

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent import config
from agent.audio import codec, source
from agent.audio.recordings import File, take_in
from agent.records import RATE_HZ
from tests.audio.bed import SOURCE, Bed, running, soon
from tests.store.faults.disk import Disk, needs_fuse


def noise(seed: int, seconds: float) -> np.ndarray:
    """Sound of which no two pieces are alike."""
    count = int(seconds * RATE_HZ)
    return np.random.default_rng(seed).integers(-9000, 9000, count).astype(np.int16)


def put(path: Path, seed: int = 1, seconds: float = 1.0) -> np.ndarray:
    """Write a recording; its sound."""
    sound = noise(seed, seconds)
    soundfile.write(path, sound, RATE_HZ, format=path.suffix[1:].upper())
    return sound


async def gone(bed: Bed, name: str, where: str = "done") -> None:
    """Wait until a file has been moved."""
    await soon((bed.inbox / where / name).exists, f"{name} is moved to {where}/")
    assert not (bed.inbox / name).exists()


async def test_a_recording_ends_in_done_and_its_sound_in_the_store(bed: Bed) -> None:
    sound = put(bed.inbox / "shift.wav", seconds=5)
    async with running(bed.watch()):
        await gone(bed, "shift.wav")
    rows = await bed.raw()
    assert [raw.end for _, raw, _, _ in rows] == [False, False, False, True]
    assert np.array_equal(await bed.sound("shift.wav"), sound)
    assert bed.conditions.all() == []


async def test_what_is_no_recording_ends_in_rejected_with_its_reason_and_the_next_is_taken(
    bed: Bed,
) -> None:
    (bed.inbox / "a.wav").write_text("not sound")
    (bed.inbox / "b.wav").touch()
    put(bed.inbox / "c.flac", seconds=12)
    whole = (bed.inbox / "c.flac").read_bytes()
    (bed.inbox / "c.flac").write_bytes(whole[: len(whole) // 2])
    (bed.inbox / "d.txt").write_text("no suffix of a recording either")
    sound = put(bed.inbox / "good.wav", seed=2)
    source = bed.watch()
    async with running(source):
        await gone(bed, "good.wav")
        for name in ("a.wav", "b.wav", "c.flac", "d.txt"):
            await gone(bed, name, "rejected")
        await soon(lambda: source.rejected == 4, "all four are counted")
    reasons = {
        name: (bed.inbox / "rejected" / f"{name}.reason.txt").read_text()
        for name in ("a.wav", "b.wav", "c.flac", "d.txt")
    }
    assert "a.wav: not a recording" in reasons["a.wav"]
    assert "b.wav: the file is empty (0 bytes)" in reasons["b.wav"]
    assert "c.flac: breaks off after" in reasons["c.flac"]
    assert "d.txt: not a recording" in reasons["d.txt"]
    assert all("expected WAV" in reasons[n] or "again" in reasons[n] for n in reasons)
    assert np.array_equal(await bed.sound(), sound), "of the refused ones nothing is kept"
    assert (bed.inbox / "rejected" / "a.wav").read_text() == "not sound"


async def test_a_file_that_still_grows_waits_and_is_then_taken_whole(bed: Bed) -> None:
    growing = bed.inbox / "growing.wav"
    sound = put(bed.folder / "all.wav", seconds=10)
    whole = (bed.folder / "all.wav").read_bytes()
    growing.write_bytes(whole[:4000])
    written = 4000
    put(bed.inbox / "still.wav", seed=2)
    async with running(bed.watch(settle_s=2.0)):
        while not (bed.inbox / "done" / "still.wav").exists():
            with growing.open("ab") as file:
                file.write(whole[written : written + 100])
            written += 100
            await asyncio.sleep(0.02)
        assert growing.exists()
        assert len(await bed.sound("growing.wav")) == 0
        with growing.open("ab") as file:
            file.write(whole[written:])
        await gone(bed, "growing.wav")
    assert np.array_equal(await bed.sound("growing.wav"), sound)


@pytest.mark.parametrize("name", [".hidden.wav", "upload.wav.part", "a.tmp", "b.crdownload"])
async def test_a_file_that_is_marked_as_unfinished_is_left_alone(bed: Bed, name: str) -> None:
    put(bed.folder / "whole.wav")
    (bed.folder / "whole.wav").rename(bed.inbox / name)
    os.utime(bed.inbox / name, (1, 1))  # so old that it would be the first
    put(bed.inbox / "good.wav")
    async with running(bed.watch()):
        await gone(bed, "good.wav")
    assert (bed.inbox / name).exists()
    assert {raw.name for _, raw, _, _ in await bed.raw()} == {"good.wav"}


@pytest.mark.parametrize(
    "name", ["night shift 3.wav", "Größe 夜班.wav", "a'b\"c;--.wav", "-.wav", "[red].wav"]
)
async def test_a_file_may_have_any_name(bed: Bed, name: str) -> None:
    sound = put(bed.inbox / name)
    async with running(bed.watch()):
        await gone(bed, name)
    assert np.array_equal(await bed.sound(name), sound)


async def test_a_file_name_in_another_encoding_does_not_end_the_source(bed: Bed) -> None:
    """As a stick from an old Windows machine brings it: Latin-1, no UTF-8."""
    sound = put(bed.folder / "plain.wav")
    (bed.folder / "plain.wav").rename(bed.inbox / os.fsdecode(b"Gr\xf6\xdfe.wav"))
    (bed.inbox / os.fsdecode(b"\xe9.wav")).write_text("not sound")
    put(bed.inbox / "next.wav", seed=2)
    async with running(bed.watch()):
        await gone(bed, "next.wav")
        await soon(lambda: not list(bed.inbox.glob("*.wav")), "all three are moved")
    assert len(list((bed.inbox / "rejected").glob("*.reason.txt"))) == 1
    assert np.array_equal((await bed.sound())[: len(sound)], sound)


async def test_the_same_name_twice_is_two_recordings(bed: Bed) -> None:
    first = put(bed.inbox / "daily.wav", seed=1)
    async with running(bed.watch()):
        await gone(bed, "daily.wav")
        second = put(bed.inbox / "daily.wav", seed=2)
        await soon((bed.inbox / "done" / "daily.1.wav").exists, "the second is moved beside it")
        for _ in range(2):
            (bed.inbox / "bad.wav").write_text("not sound")
            await soon(lambda: not (bed.inbox / "bad.wav").exists(), "bad.wav is moved")
        await soon((bed.inbox / "rejected" / "bad.1.wav.reason.txt").exists, "with its reason")
    assert np.array_equal(await bed.sound("daily.wav"), np.concatenate([first, second]))
    assert len({raw.take for _, raw, _, _ in await bed.raw()}) == 2


async def test_older_recordings_are_taken_first(bed: Bed) -> None:
    for name, age in (("b.wav", 3), ("a.wav", 2), ("c.wav", 1)):
        put(bed.inbox / name)
        os.utime(bed.inbox / name, (1_700_000_000 - age, 1_700_000_000 - age))
    async with running(bed.watch()):
        await gone(bed, "c.wav")
    assert [raw.name for _, raw, _, _ in await bed.raw() if raw.end] == ["b.wav", "a.wav", "c.wav"]


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("records", [1, 2, 5])
async def test_a_recording_that_was_broken_off_goes_on_where_it_was(
    tmp_path: Path, small: Callable[[int], Bed], records: int, rate: int
) -> None:
    """The first run finds room for so many records only; the second finds room for all."""
    sound = np.random.default_rng(records).uniform(-0.3, 0.3, 20 * rate)
    async with small(records * 65_000) as bed:
        soundfile.write(bed.inbox / "long.wav", sound, rate)
        async with running(bed.watch()):
            await soon(lambda: bed.condition("store_full"), "the store is full")
        begun = len(await bed.sound())
        assert 0 < begun < 20 * RATE_HZ
        assert (bed.inbox / "long.wav").exists()
        whole = np.concatenate(list(codec.decode(bed.inbox / "long.wav", 1000)))
    async with Bed(tmp_path) as bed:
        assert len(await bed.sound()) == begun
        async with running(bed.watch()):
            await gone(bed, "long.wav")
        assert np.array_equal(await bed.sound("long.wav"), whole)
        assert len({raw.take for _, raw, _, _ in await bed.raw()}) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_a_recording_cancelled_anywhere_is_in_the_store_exactly_once(
    tmp_path: Path, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    (tmp_path / "inbox").mkdir()
    sounds = {f"{i}.wav": put(tmp_path / "inbox" / f"{i}.wav", i, seconds=30) for i in range(3)}
    for _ in range(4):
        async with Bed(tmp_path) as bed:
            wanted = len(await bed.raw()) + int(chance.integers(1, 16))
            async with running(bed.watch()):
                await soon(lambda n=wanted: reached(bed, n), "some more of it is accepted")
    async with Bed(tmp_path) as bed:
        async with running(bed.watch()):
            await soon(lambda: len(list((bed.inbox / "done").iterdir())) == 3, "all are done")
        for name, sound in sounds.items():
            assert np.array_equal(await bed.sound(name), sound)
        assert sum(raw.end for _, raw, _, _ in await bed.raw()) == 3


async def reached(bed: Bed, records: int) -> bool:
    """Whether so many raw records are held, or all there will ever be."""
    return len(await bed.raw()) >= min(records, 48)


async def test_a_recording_that_was_taken_in_but_not_yet_moved_is_not_taken_in_again(
    bed: Bed,
) -> None:
    sound = put(bed.inbox / "a.wav")
    disk = source.Disk(SOURCE, bed.conditions)
    await take_in(bed.inbox / "a.wav", bed.recorder, disk)  # and here the power fails
    async with running(bed.watch()):
        await gone(bed, "a.wav")
    assert np.array_equal(await bed.sound(), sound)


async def test_a_full_store_makes_the_folder_wait_and_nothing_is_lost(
    small: Callable[[int], Bed],
) -> None:
    async with small(200_000) as bed:
        sound = put(bed.inbox / "long.wav", seconds=20)
        done = bed.inbox / "done" / "long.wav"
        heard = []
        async with running(bed.watch()):
            while await soon(lambda: bed.condition("store_full") or done.exists(), "it is full"):
                heard.append(await bed.sound())
                if done.exists():
                    break
                await bed.make_room()
                await soon(bed.raw, "there is room and it goes on")
        assert len(heard) > 2
        assert np.array_equal(np.concatenate(heard), sound)
        assert bed.condition("store_full") is None
        assert set((await bed.balance()).dropped) == {"processed"}


async def test_a_full_store_is_a_condition_with_a_remedy(small: Callable[[int], Bed]) -> None:
    async with small(0) as bed:
        put(bed.inbox / "long.wav", seconds=20)
        async with running(bed.watch()):
            full = await soon(lambda: bed.condition("store_full"), "it is full")
    assert full.severity == "critical"
    assert "store.bytes_max" in full.cause
    assert full.remedy


async def test_an_inbox_that_is_not_there_is_made(bed: Bed) -> None:
    bed.inbox.rmdir()
    async with running(bed.watch()):
        await soon((bed.inbox / "rejected").is_dir, "the folders are made")


async def test_an_inbox_that_is_a_file_is_a_condition_and_is_looked_at_again(bed: Bed) -> None:
    bed.inbox.rmdir()
    bed.inbox.write_text("in the way")
    async with running(bed.watch()):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
        assert str(bed.inbox) in held.cause
        assert held.remedy
        bed.inbox.unlink()
        await soon(lambda: bed.condition("source_unreadable") is None, "it is over")


async def test_a_single_file_is_taken_in_once_even_over_restarts(bed: Bed) -> None:
    sound = put(bed.folder / "one.wav", seconds=3)
    settings = config.File(name="inbox", path=str(bed.folder / "one.wav"))
    for _ in range(2):
        await File(settings, bed.recorder_of("inbox"), bed.conditions).run()
    assert np.array_equal(await bed.sound(), sound)


async def test_a_single_file_that_comes_later_is_taken_then(bed: Bed) -> None:
    path = bed.folder / "later.wav"
    settings = config.File(name="inbox", path=str(path))
    async with running(File(settings, bed.recorder, bed.conditions)):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is missed")
        assert str(path) in held.cause
        sound = put(path)
        await soon(lambda: bed.condition("source_unreadable") is None, "it is taken")
    assert np.array_equal(await bed.sound(), sound)


async def test_a_recording_taken_away_while_it_is_read_is_ended_and_forgotten(bed: Bed) -> None:
    put(bed.inbox / "a.wav", seconds=20)
    source = bed.watch()
    async with running(source):
        await soon(bed.raw, "some of it is there")
        (bed.inbox / "a.wav").unlink()
        await soon(lambda: ended(bed, 1), "the take is ended")
        put(bed.inbox / "b.wav", seed=2)
        await gone(bed, "b.wav")
        await soon(lambda: no_takes(bed), "both are forgotten")
    assert source.rejected == 0
    assert bed.condition("source_unreadable") is None


async def no_takes(bed: Bed) -> bool:
    return await takes(bed) == 0


async def ended(bed: Bed, count: int) -> bool:
    return sum(raw.end for _, raw, _, _ in await bed.raw()) == count


async def takes(bed: Bed) -> int:
    return await bed.store._database.read(
        lambda c: c.execute("SELECT count(*) FROM takes").fetchone()[0]
    )


async def test_a_recording_taken_away_while_the_agent_was_down_is_ended_at_the_next_start(
    bed: Bed,
) -> None:
    put(bed.inbox / "a.wav", seconds=60)
    async with running(bed.watch()):
        await soon(bed.raw, "some of it is there")
    assert not await ended(bed, 1)
    (bed.inbox / "a.wav").unlink()
    put(bed.inbox / "b.wav", seed=2)
    async with running(bed.watch()):
        await gone(bed, "b.wav")
        await soon(lambda: no_takes(bed), "both are forgotten")
    assert await ended(bed, 2)


async def test_a_recording_that_is_replaced_while_it_is_read_is_read_again(bed: Bed) -> None:
    put(bed.inbox / "a.wav", seconds=120)
    new = put(bed.folder / "new.wav", seed=2, seconds=3)
    async with running(bed.watch()):
        await soon(bed.raw, "some of it is there")
        (bed.folder / "new.wav").rename(bed.inbox / "a.wav")
        await gone(bed, "a.wav")
    rows = await bed.raw()
    last = [row for row in rows if row[1].take == rows[-1][1].take]
    assert np.array_equal(np.concatenate([np.frombuffer(r[3], "<i2") for r in last]), new)
    assert await ended(bed, 2)


async def test_a_recording_that_becomes_shorter_while_it_is_read_is_refused(bed: Bed) -> None:
    path = bed.inbox / "a.wav"
    put(path, seconds=600)
    source = bed.watch()
    async with running(source):
        await soon(bed.raw, "some of it is there")
        os.truncate(path, 1_000_000)
        await soon(lambda: source.rejected == 1, "it is refused")
        await soon(lambda: no_takes(bed), "its take is forgotten")
    assert "breaks off" in (bed.inbox / "rejected" / "a.wav.reason.txt").read_text()
    assert await ended(bed, 1)


async def test_a_file_of_any_name_that_cannot_be_moved_is_a_condition(bed: Bed) -> None:
    """done/ lies on another file system, where a rename cannot reach."""
    put(bed.inbox / "x.wav")
    (bed.inbox / "x.wav").rename(bed.inbox / os.fsdecode(b"caf\xe9.wav"))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (bed.inbox / "done").symlink_to(elsewhere)
        async with running(bed.watch()):
            await soon(lambda: bed.condition("source_unreadable"), "the condition")
            said = bed.condition("source_unreadable")
    assert said is not None
    assert "caf\ufffd.wav" in said.cause


async def test_a_link_onto_itself_holds_up_no_other_file(bed: Bed) -> None:
    (bed.inbox / "a.wav").symlink_to("a.wav")
    (bed.inbox / "b.wav").symlink_to("nothing.wav")
    put(bed.inbox / "c.wav")
    async with running(bed.watch()):
        await gone(bed, "c.wav")
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
    assert "a.wav" in held.cause


async def test_a_recording_that_grows_while_it_is_read_is_read_again_whole(bed: Bed) -> None:
    sound = put(bed.folder / "all.wav", seconds=240)
    whole = (bed.folder / "all.wav").read_bytes()
    header = bytearray(whole[:44])
    header[4:8] = header[40:44] = b"\xff" * 4  # as one that is written into a pipe
    growing = bed.inbox / "a.wav"
    growing.write_bytes(bytes(header) + whole[44 : len(whole) // 2])
    async with running(bed.watch()):
        await soon(bed.raw, "some of it is there")
        with growing.open("ab") as file:
            file.write(whole[len(whole) // 2 :])
        await gone(bed, "a.wav")
    rows = await bed.raw()
    last = [row for row in rows if row[1].take == rows[-1][1].take]
    assert np.array_equal(np.concatenate([np.frombuffer(r[3], "<i2") for r in last]), sound)


async def test_a_disk_that_does_not_answer_is_told_of_and_holds_up_nobody_else(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks into the folder waits in the kernel: the loop goes on, or this test would not."""
    needs_fuse()
    monkeypatch.setattr(source, "SILENT_S", 0.2)
    with Disk(bed.folder / "disk") as disk:
        bed.inbox = disk.mount
        sound = await asyncio.to_thread(put, bed.inbox / "a.wav")
        disk.rule("*", ["getattr"], delay_s=3600.0)
        async with running(bed.watch()):
            held = await soon(lambda: bed.condition("source_unreadable"), "it is told")
            assert "its disk has not answered" in held.cause
            disk.clear()
            await soon(lambda: bed.condition("source_unreadable") is None, "it answers again")
            await gone(bed, "a.wav")
    assert np.array_equal(await bed.sound(), sound)
