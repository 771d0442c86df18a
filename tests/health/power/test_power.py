"""A board that grows hot, and one whose battery empties: what is set, told and taken back."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from agent.clock import Clock
from agent.config import Power as Settings
from agent.config import PowerProfile, PowerRule
from agent.health.conditions import Conditions
from agent.health.power.governor import Verdict
from agent.health.power.power import RETRY_S, Board, Power
from agent.host.accelerators.jetson import power_mode
from agent.host.root.client import RootRefused
from agent.host.supply import battery_left, cpu_c
from tests.host.supplied import battery, mode, zone
from tests.sync.rig import eventually

SETTINGS = Settings(
    {"full": PowerProfile(nvpmodel=0), "low": PowerProfile(nvpmodel=2, rest=["pictures"])},
    "full",
    [PowerRule(profile="low", above_c=90), PowerRule(profile="low", battery_below=0.4)],
)


class Hands(Clock):
    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


class Bed:
    """A board's files below a folder, and hands that write its mode there."""

    def __init__(self, root: Path, settings: Settings = SETTINGS) -> None:
        self.root = root
        self.gpu_c: float | None = None
        self.asked: list[int] = []
        self.resting: Mapping[str, str] = {}
        self.noted: list[Verdict] = []
        self.refusal = ""
        self.obeys = True
        self.clock = Hands()
        self.conditions = Conditions(self.clock)
        self.power = Power(
            settings,
            lambda: Board(cpu_c(root), battery_left(root), power_mode(root)),
            lambda: self.gpu_c,
            self.set_mode,
            self.rest,
            self.noted.append,
            self.conditions,
            self.clock,
        )
        mode(root, 0)

    async def set_mode(self, wanted: int) -> str:
        self.asked.append(wanted)
        if self.refusal:
            raise RootRefused(self.refusal, "see to it")
        if self.obeys:
            mode(self.root, wanted)
        return "done"

    def rest(self, why: Mapping[str, str]) -> None:
        self.resting = why

    @property
    def told(self) -> dict[str, str]:
        return {one.name: one.cause for one in self.conditions.all()}


async def test_a_board_that_grows_hot_gets_the_lower_profile_and_the_other_one_back(
    tmp_path: Path,
) -> None:
    bed = Bed(tmp_path)
    zone(tmp_path, "cpu-thermal", 60.0)
    await bed.power.look()
    assert (bed.asked, bed.told, bed.noted) == ([], {}, [])
    bed.gpu_c = 93.0
    await bed.power.look()
    assert bed.asked == [2]
    why = "power profile low is in force: it has reached 90 °C"
    assert bed.told == {"power_saving": f"{why}; no calls go to pictures"}
    assert bed.resting == {"pictures": why}
    shown = bed.power.shown()
    assert (shown.profile, shown.hottest_c, shown.mode_wanted) == ("low", 93.0, 2)
    bed.gpu_c = 79.0
    await bed.power.look()
    assert (bed.asked, bed.told, bed.resting) == ([2, 0], {}, {})
    assert [one.profile for one in bed.noted] == ["low", "full"]


async def test_a_battery_that_empties_and_is_charged_again(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    battery(tmp_path, "Discharging", 35)
    await bed.power.look()
    assert bed.power.shown().battery_left_ratio == 0.35
    assert bed.asked == [2]
    battery(tmp_path, "Charging", 36)
    await bed.power.look()
    assert bed.asked == [2, 0]


async def test_a_mode_that_is_refused_is_said_and_asked_for_again_later(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.gpu_c, bed.refusal = 95.0, "/usr/sbin/nvpmodel: no such file"
    for _ in range(3):
        await bed.power.look()
        assert "no such file" in bed.told["power_mode_unset"]
    assert bed.asked == [2]
    bed.refusal = ""
    bed.clock.at_s += RETRY_S
    await bed.power.look()
    await bed.power.look()
    assert bed.asked == [2, 2]
    assert "power_mode_unset" not in bed.told


async def test_a_mode_that_does_not_come_to_be_is_said(tmp_path: Path) -> None:
    """It needs a reboot, which nobody orders by himself."""
    bed = Bed(tmp_path)
    bed.gpu_c, bed.obeys = 95.0, False
    await bed.power.look()
    await bed.power.look()
    assert bed.told["power_mode_unset"] == "power mode 2 was set, but the board is in 0"
    bed.gpu_c = 50.0
    await bed.power.look()
    assert (bed.asked, "power_mode_unset" in bed.told) == ([2], False)


async def test_without_profiles_nothing_is_done_and_the_battery_is_shown(tmp_path: Path) -> None:
    bed = Bed(tmp_path, Settings())
    battery(tmp_path, "Discharging", 5)
    await bed.power.look()
    assert bed.power.shown().battery_left_ratio == 0.05
    battery(tmp_path, "Charging", 6)
    await bed.power.look()
    assert bed.power.shown().battery_left_ratio == 1.0
    assert (bed.asked, bed.told) == ([], {})


async def test_other_settings_are_judged_at_once(tmp_path: Path) -> None:
    bed = Bed(tmp_path, Settings())
    zone(tmp_path, "cpu-thermal", 93.0)
    task = asyncio.create_task(bed.power.run())
    try:
        await eventually(lambda: bed.power.shown().hottest_c == 93.0, "it has looked")
        assert (bed.asked, bed.told) == ([], {})
        bed.power.change(SETTINGS)  # while it rests for a minute
        await eventually(lambda: bed.asked == [2], "the profile is in force")
        bed.power.change(Settings())
        await eventually(lambda: not bed.told, "none is")
        assert bed.resting == {}
    finally:
        task.cancel()
