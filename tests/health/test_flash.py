"""How the flash wears: rates by source, a projected life, and a condition when it is short."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.health.conditions import Conditions
from agent.health.flash import DAY_S, JUDGED_AFTER_S, YEAR_S, Flash
from agent.host.disk import Writes
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store
from tests.host.sysfs import Kernel

GIB = 1 << 30
TB = 10**12


class Hands(Clock):
    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


class Bed:
    """A store on the fake kernel's disk, and what watches its wear."""

    def __init__(
        self, folder: Path, kernel: Kernel, clock: Hands, settings: dict[str, Any]
    ) -> None:
        self.clock = clock
        self.kernel = kernel
        self.conditions = Conditions(clock)
        rules = Settings(path=str(folder / "s.db"), **settings)
        self.store = Store(rules, Clock())
        self.flash = Flash(
            rules,
            self.store.wear,
            self.conditions,
            clock,
            lambda path: Writes(path, kernel.root),
        )

    def runs(self, seconds: float, device_bytes: int = 0, process_bytes: int = 0) -> None:
        self.clock.at_s += seconds
        self.kernel.writes(device_bytes, process_bytes)
        self.flash.judge()

    def held(self) -> list[str]:
        return [c.name for c in self.conditions.all()]


Make = Callable[..., AbstractAsyncContextManager[Bed]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    kernel, clock = Kernel(tmp_path / "root", tmp_path), Hands()

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Bed]:
        bed = Bed(tmp_path, kernel, clock, settings)
        async with bed.store, bed.flash:
            yield bed

    return opened


async def test_rates_are_told_by_source_and_the_amplification_against_the_payload(
    make: Make,
) -> None:
    async with make() as bed:
        bed.kernel.say_life_time("0x01 0x02")
        await bed.store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(998))])
        bed.runs(DAY_S / 4, device_bytes=GIB, process_bytes=2500)
        assert await bed.flash.state() == {
            "device": "mmcblk0",
            "life_time": "0x01 0x02",
            "sources": {
                "process": {"bytes": 2500, "running_s": DAY_S / 4, "bytes_per_day": 10_000},
                "device": {"bytes": GIB, "running_s": DAY_S / 4, "bytes_per_day": 4 * GIB},
            },
            "payload": {"a": {"bytes": 1000, "running_s": DAY_S / 4, "bytes_per_day": 4000}},
            "write_amplification": 2.5,
            "endurance_tb_written": None,
            "life_years": None,
        }


async def test_what_nobody_tells_is_unknown_and_not_guessed(make: Make) -> None:
    async with make(endurance_tb_written=1.0) as bed:
        bed.runs(2 * JUDGED_AFTER_S, device_bytes=GIB, process_bytes=GIB)
        assert bed.flash.life_years() is not None
        bed.kernel.mount(None)
    async with make(endurance_tb_written=1.0) as bed:
        bed.runs(2 * JUDGED_AFTER_S, process_bytes=10)
        state = await bed.flash.state()
        assert (state["device"], state["life_time"], state["life_years"]) == (None, None, None)
        assert state["sources"]["device"] is None
        assert state["sources"]["process"]["bytes"] == GIB + 10
        assert state["write_amplification"] is None, "nothing was brought yet"
        assert bed.flash.written_bytes() == {"process": 10}


async def test_a_rate_of_the_first_minute_is_not_told(make: Make) -> None:
    async with make() as bed:
        bed.runs(59, device_bytes=GIB)
        assert (await bed.flash.state())["sources"]["device"]["bytes_per_day"] is None
        bed.runs(1)
        assert (await bed.flash.state())["sources"]["device"]["bytes_per_day"] > 0


async def test_totals_go_on_over_restarts_and_only_running_time_counts(make: Make) -> None:
    async with make() as bed:
        bed.runs(3600, device_bytes=GIB, process_bytes=1000)
    bed.clock.at_s += 5 * 3600
    bed.kernel.writes(device_bytes=100 * GIB)  # by others, while nobody looked
    async with make() as bed:
        bed.runs(3600, device_bytes=3 * GIB, process_bytes=500)
        sources = (await bed.flash.state())["sources"]
        assert sources["device"] == {
            "bytes": 4 * GIB,
            "running_s": 7200,
            "bytes_per_day": 48 * GIB,
        }
        assert sources["process"]["bytes"] == 1500
        assert bed.flash.written_bytes() == {"process": 500, "device": 3 * GIB}


async def test_counts_that_begin_anew_lose_nothing(make: Make) -> None:
    async with make() as bed:
        bed.runs(60, device_bytes=GIB)
        bed.kernel.attach_again()
        bed.runs(60, device_bytes=4096)
        assert bed.flash.written_bytes()["device"] == GIB + 4096


async def test_a_file_that_takes_the_place_of_a_damaged_one_counts_from_zero(make: Make) -> None:
    async with make() as bed:
        await bed.store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(998))])
    async with make() as bed:
        await bed.store._database.write(lambda c: c.execute("UPDATE streams SET taken_bytes = 0"))
        await bed.store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(8))])
        assert (await bed.flash.state())["payload"]["a"]["bytes"] == 10


async def test_the_life_is_what_is_left_of_the_endurance_at_this_rate(make: Make) -> None:
    async with make(endurance_tb_written=3.0) as bed:
        bed.runs(YEAR_S / 2, device_bytes=TB)
        assert bed.flash.life_years() == pytest.approx(1.0, rel=1e-6)
        bed.runs(YEAR_S, device_bytes=3 * TB)
        assert bed.flash.life_years() == 0.0, "spent"


async def test_a_short_life_is_a_condition_once_there_was_time_to_judge(make: Make) -> None:
    async with make(endurance_tb_written=10.0, life_years_min=2.0) as bed:
        bed.runs(JUDGED_AFTER_S - 1, device_bytes=GIB)
        assert bed.held() == []
        bed.runs(1)
        (held,) = bed.conditions.all()
        assert (held.name, held.subject, held.severity) == ("flash_wearing", "store", "warning")
        assert "mmcblk0 takes 24.0 GiB a day and lasts 1.1 years" in held.cause
        assert held.remedy
        bed.runs(2 * JUDGED_AFTER_S)
        assert bed.held() == [], "it lasts three times as long"


async def test_without_an_endurance_nothing_is_judged(make: Make) -> None:
    async with make() as bed:
        bed.runs(2 * JUDGED_AFTER_S, device_bytes=10 * TB)
        assert bed.held() == []
        assert (await bed.flash.state())["life_years"] is None


async def test_what_is_noted_between_is_there_after_a_crash(make: Make) -> None:
    async with make() as bed:
        bed.runs(600, device_bytes=GIB)
        await bed.flash.note()
        bed.runs(60, device_bytes=GIB)
        noted = await bed.store.wear.noted()
        assert (noted["device"].bytes, noted["device"].running_s) == (GIB, 600)
