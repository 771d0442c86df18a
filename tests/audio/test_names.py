"""Files may be called whatever the file system allows."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent import logs
from agent.records import RATE_HZ
from tests.audio.bed import Bed, running, soon

LONGEST = "夜" * 83 + "ab.wav"  # 255 bytes


def put(path: Path, seed: int) -> np.ndarray:
    """Write a recording; its sound."""
    sound = np.random.default_rng(seed).integers(-9000, 9000, RATE_HZ).astype(np.int16)
    soundfile.write(path, sound, RATE_HZ)
    return sound


def waiting(bed: Bed) -> list[Path]:
    return [path for path in bed.inbox.iterdir() if path.is_file()]


def test_the_longest_name_is_as_long_as_names_can_be() -> None:
    assert len(LONGEST.encode()) == 255


async def test_the_longest_name_twice_is_two_recordings_and_holds_nobody_up(bed: Bed) -> None:
    sounds = []
    async with running(bed.watch()):
        for seed in range(2):
            sounds.append(put(bed.inbox / LONGEST, seed))
            await soon(lambda: not waiting(bed), "it is taken in and moved")
        sounds.append(put(bed.inbox / "next.wav", 3))
        await soon(lambda: not waiting(bed), "the next one is taken in and moved")
    assert np.array_equal(await bed.sound(), np.concatenate(sounds))
    assert bed.conditions.all() == []


async def test_what_is_refused_under_the_longest_name_has_its_reason(bed: Bed) -> None:
    (bed.inbox / LONGEST).write_text("not sound")
    source = bed.watch()
    async with running(source):
        await soon(lambda: not waiting(bed), "it is moved")
        await soon(lambda: source.rejected == 1, "it is counted")
    (reason,) = (bed.inbox / "rejected").glob("*.reason.txt")
    assert "not a recording" in reason.read_text()
    assert bed.conditions.all() == []


@pytest.mark.parametrize("name", ["a\n<0>kernel: panic.wav", "a\r\x1b[2J.wav"])
async def test_a_name_cannot_forge_a_line_of_the_log(
    bed: Bed, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (bed.inbox / name).write_text("not sound")
    async with running(bed.watch()):
        await soon(lambda: not waiting(bed), "it is moved")
        await soon(lambda: caplog.records, "it is logged")
    for record in caplog.records:
        assert logs.Journal().format(record).isprintable()
        line = logs.Terminal().format(record)
        assert not {"\n", "\r"} & set(line)
        assert "\x1b[2J" not in line
