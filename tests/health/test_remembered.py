"""What models were at, over an end that nobody ordered."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.health.remembered import KEEP_S, Remembered, Standing
from agent.inference.breaker import CALLS_MIN, OPEN_S
from agent.inference.domains.domain import Domain
from tests.inference.domains.family import workers
from tests.inference.domains.rig import Rig, put, rules, running, until


class Bent(Clock):
    def __init__(self) -> None:
        self.boot, self.mono_s = "boot-1", 1000.0

    def monotonic(self) -> float:
        return self.mono_s


class Played:
    """Breakers, and no domains."""

    def __init__(self, **left_s: float) -> None:
        self.left_s: dict[str, float] = left_s

    def open_breakers(self) -> dict[str, float]:
        return dict(self.left_s)

    def reopen(self, left_s: Any) -> None:
        self.left_s = dict(left_s)

    def all(self) -> list[Domain]:
        return []


def begun(path: Path, clock: Clock, **left_s: float) -> tuple[Remembered, Played]:
    played = Played(**left_s)
    return Remembered(path, played, played, clock), played


async def test_a_pause_goes_on_and_what_went_by_within_the_boot_counts(tmp_path: Path) -> None:
    path, clock = tmp_path / "remembered.json", Bent()
    await begun(path, clock, m=8.0, n=2.0)[0].look()
    clock.mono_s += 5.0
    again, played = begun(path, clock)
    again.restore()
    assert played.left_s == {"m": 3.0, "n": 0.0}
    clock.boot, clock.mono_s = "boot-2", 3.0
    again, played = begun(path, clock)
    again.restore()
    assert played.left_s == {"m": 8.0, "n": 2.0}, "nobody knows how long the power was away"


async def test_it_is_written_when_something_begins_or_ends_and_seldom_else(tmp_path: Path) -> None:
    path, clock = tmp_path / "remembered.json", Bent()
    kept, played = begun(path, clock)

    async def written() -> bool:
        path.unlink(missing_ok=True)
        await kept.look()
        return path.exists()

    assert not await written()
    clock.mono_s += 2 * KEEP_S
    assert not await written(), "there is nothing to remember"
    played.left_s = {"m": 8.0}
    assert await written()
    played.left_s = {"m": 3.0}
    assert not await written()
    clock.mono_s += KEEP_S
    assert await written()
    played.left_s = {}
    assert await written()
    assert not await written()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"breakers": 1}', b"[" * 100_000])
async def test_a_file_that_is_none_is_as_if_nothing_had_been(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "remembered.json"
    path.write_bytes(content)
    kept, played = begun(path, Bent())
    kept.restore()
    assert played.left_s == {}
    played.left_s = {"m": 1.0}
    await kept.look()
    assert msgspec.json.decode(path.read_bytes(), type=Standing).breakers == {"m": 1.0}


async def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept, played = begun(tmp_path / "file" / "remembered.json", Bent())
    played.left_s = {"m": 1.0}
    await kept.look()


async def test_an_open_breaker_and_a_resting_domain_are_so_in_the_next_agent(
    tmp_path: Path,
) -> None:
    root, path = tmp_path / "models", tmp_path / "remembered.json"
    put(root, 1)
    put(root, 1, "other")
    settings = {"d": rules(), "e": rules("other", quarantine_s=200.0)}
    async with running(root, **settings) as rig:
        model = rig.domains.named("d").models["m"]
        breaker, now_s = rig.scheduler.breaker(model), rig.clock.monotonic()
        for _ in range(CALLS_MIN):
            breaker.went(now_s, breaker.admits(now_s) or 0, erred=True)
        rig.domains.named("e").rest(1000.0)
        await Remembered(path, rig.scheduler, rig.domains, rig.clock).look()

    rig = Rig(root, settings)
    Remembered(path, rig.scheduler, rig.domains, rig.clock).restore()
    async with rig.zygote, rig.domains:
        task = asyncio.create_task(rig.domains.run())
        await rig.ready("d")
        assert 0 < rig.scheduler.open_breakers()[model.label] <= OPEN_S
        assert rig.scheduler.breaker_state(model) == "open"
        resting = rig.domains.named("e")
        assert 0 < resting.rest_s <= 200.0, "its settings bound it"
        assert "again and again" in resting.cause
        assert len(workers()) == 1
        resting.restart()
        await until(resting.ready.is_set, "somebody had it tried anew")
        task.cancel()
        await asyncio.wait([task])
