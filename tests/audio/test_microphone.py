"""The microphone: a real arecord on ALSA devices made of files."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent import config
from agent.audio import codec, live
from agent.audio.live import Microphone
from agent.records import RATE_HZ
from tests.audio.bed import SOURCE, Bed, running, soon
from tests.host.grouped import freezing, needs_group
from tests.outside import program

SYSTEM = Path("/usr/share/alsa/alsa.conf")


@pytest.fixture(autouse=True)
def alsa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, np.ndarray], None]:
    """Adds an ALSA device that gives this sound, and after it whatever lay in its buffer."""
    program("arecord", "alsa-utils")
    rules = tmp_path / "alsa.conf"
    rules.write_text(f"<{SYSTEM}>\n")
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(rules))

    def add(name: str, sound: np.ndarray) -> None:
        raw = tmp_path / f"{name}.raw"
        raw.write_bytes(sound.astype("<i2").tobytes())
        with rules.open("a") as file:
            file.write(
                f'pcm.{name} {{ type file slave.pcm "null" file "/dev/null"'
                f' infile "{raw}" format "raw" }}\n'
            )

    return add


def microphone(bed: Bed, device: str, rate: int = RATE_HZ, channels: int = 1) -> Microphone:
    """A microphone that is tried again at once and missed after 1.5 s of nothing."""
    settings = config.Microphone(
        name=SOURCE, device=device, rate_hz=rate, channels=channels, retry_s=0.05
    )
    return Microphone(settings, 0.05, bed.recorder, bed.conditions, bed.clock)


def arecords() -> list[psutil.Process]:
    """The arecord processes of this test."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [c for c in psutil.Process().children() if c.name() == "arecord"]
    return []


def noise(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(5).integers(-9000, 9000, (count, channels)).astype(np.int16)


def resampled(sound: np.ndarray, rate: int) -> np.ndarray:
    return codec.Resampler(rate).push(sound.astype(np.float32) / 32768.0)


async def heard(bed: Bed, samples: int) -> bool:
    return sum(raw.samples for _, raw, _, _ in await bed.raw()) >= samples


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 1), (44_100, 2)])
async def test_what_the_device_hears_reaches_the_store(
    bed: Bed, alsa: Callable, rate: int, channels: int
) -> None:
    sound = noise(2 * rate, channels)
    alsa("known", sound)
    async with running(microphone(bed, "known", rate, channels)):
        await soon(lambda: heard(bed, 2 * RATE_HZ), "two seconds are heard")
    wanted = resampled(sound, rate)
    assert len(wanted) > 1.9 * RATE_HZ
    assert np.array_equal((await bed.sound())[: len(wanted)], wanted)
    assert bed.conditions.all() == []
    assert arecords() == [], "arecord is left behind"


async def test_a_device_that_is_not_there_is_a_condition_until_it_comes(
    bed: Bed, alsa: Callable
) -> None:
    sound = noise(RATE_HZ)
    async with running(microphone(bed, "late")):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is missed")
        assert "arecord ended" in held.cause
        assert "No such file or directory" in held.cause
        assert "arecord -L" in held.remedy
        assert held.severity == "warning"
        alsa("late", sound)
        await soon(lambda: heard(bed, RATE_HZ), "it is heard")
        await soon(lambda: bed.condition("source_unreadable") is None, "the condition is over")
    first = next(raw.take for _, raw, _, _ in await bed.raw() if raw.samples)
    pieces = [pcm for _, raw, _, pcm in await bed.raw() if raw.take == first]
    assert b"".join(pieces)[: 2 * RATE_HZ] == sound.tobytes()[: 2 * RATE_HZ]


async def test_without_arecord_the_condition_says_what_to_install(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bed.folder))
    async with running(microphone(bed, "default")):
        held = await soon(lambda: bed.condition("source_unreadable"), "it is said")
    assert held.cause == "arecord is not installed"
    assert held.remedy == "apt-get install alsa-utils"


async def test_an_arecord_that_dies_is_started_again_and_a_new_take_begins(
    bed: Bed, alsa: Callable
) -> None:
    alsa("known", noise(RATE_HZ))
    async with running(microphone(bed, "known")):
        await soon(lambda: heard(bed, RATE_HZ // 2), "it is heard")
        (first,) = arecords()
        first.kill()
        await soon(lambda: bed.condition("source_unreadable"), "the end is said")
        begun = len(await bed.raw())
        await soon(lambda: [a for a in arecords() if a.pid != first.pid], "another is started")
        await soon(lambda: more(bed, begun + 5), "and heard")
        await soon(lambda: bed.condition("source_unreadable") is None, "the condition is over")
    rows = await bed.raw()
    takes = {raw.take for _, raw, _, _ in rows}
    assert len(takes) == 2
    assert [raw.take for _, raw, _, _ in rows if raw.end] == [min(takes)]


async def more(bed: Bed, records: int) -> bool:
    return len(await bed.raw()) >= records


async def test_an_arecord_that_hangs_is_a_condition_and_what_follows_is_a_new_take(
    bed: Bed, alsa: Callable
) -> None:
    """As when a USB sound card is pulled: the process waits in the driver."""
    alsa("known", noise(RATE_HZ))
    async with running(microphone(bed, "known")):
        await soon(lambda: heard(bed, RATE_HZ // 2), "it is heard")
        (first,) = arecords()
        os.kill(first.pid, signal.SIGSTOP)
        held = await soon(lambda: bed.condition("source_unreadable"), "the silence is said")
        assert "no sound for" in held.cause
        assert "cable" in held.remedy
        begun = len(await bed.raw())
        await soon(lambda: more(bed, begun + 5), "another one is heard")
        assert not psutil.pid_exists(first.pid)
    takes = {raw.take for _, raw, _, _ in await bed.raw()}
    assert len(takes) == 2, "the sound before and after the gap is glued together"


async def test_a_full_store_does_not_stop_the_microphone(
    small: Callable[[int], Bed], alsa: Callable
) -> None:
    alsa("known", noise(RATE_HZ))
    async with small(0) as bed:
        async with running(microphone(bed, "known")):
            await soon(lambda: refused(bed, 5), "stretches are refused and counted")
            await bed.make_room()
            await soon(bed.raw, "what comes then is kept")
        assert (await bed.balance()).balanced


async def refused(bed: Bed, count: int) -> bool:
    return (await bed.balance()).dropped.get("full", 0) >= count


async def test_an_overrun_is_counted_in_the_ledger_and_a_new_take_begins(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arecord that says what the real one says when nobody reads it in time."""
    stand_in = tmp_path / "bin" / "arecord"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "#!/bin/sh\nhead -c 16000 /dev/zero\n"
        'echo "overrun!!! (at least 1.234 ms long)" >&2\nsleep 0.3\nhead -c 16000 /dev/zero\n'
        "exec sleep 60\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    async with running(microphone(bed, "any")):
        said = await soon(lambda: bed.condition("sound_lost"), "it is said")
        await soon(lambda: two_takes(bed), "what comes after is another take")
    assert "overrun" in said.cause
    assert (await bed.balance()).dropped == {"overrun": 1}


async def two_takes(bed: Bed) -> bool:
    return len({raw.take for _, raw, _, _ in await bed.raw()}) == 2


async def test_an_arecord_that_sits_in_its_driver_is_told_of_until_it_ends(
    bed: Bed, alsa: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal reaches it; another one would meet the same driver, and is not started."""
    needs_group("freezer")
    monkeypatch.setattr(live, "KILLED_S", 0.2)
    alsa("known", noise(RATE_HZ))
    async with running(microphone(bed, "known")):
        await soon(lambda: heard(bed, RATE_HZ // 2), "it is heard")
        (stuck,) = arecords()
        with freezing(stuck.pid):
            held = await soon(lambda: bed.condition("source_unreadable"), "it is told")
            assert "it sits in its driver" in held.cause
            assert arecords() == [stuck]
        await soon(lambda: bed.condition("source_unreadable") is None, "another one is heard")
