"""What becomes of readings: conditions, counts of energy and Xids, and what is shown."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from agent.clock import Clock
from agent.faults import fault
from agent.health.accelerators import (
    CALM_S,
    ERRORS_CALM_S,
    GAP_S,
    LOOK_S,
    PER_CALL_S,
    RETRY_S,
    XIDS_MAX,
    AcceleratorWatch,
)
from agent.health.conditions import Condition, Conditions
from agent.host.accelerators.accelerator import Backend, Reading, Unreadable
from agent.host.accelerators.none import NoAccelerator
from tests.host.accelerators.libnvml import VERSION_MISMATCH, Card, bound
from tests.outside import DEADLINE_S
from tests.sync.rig import eventually

READING = Reading(id="gpu", name="GPU", temperature_c=50.0, temperature_c_max=95.0, power_w=10.0)


class Hands(Clock):
    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


class Board:
    """A board that says what a test lets it say."""

    backend: Backend = "jetson"

    def __init__(self) -> None:
        self.reading = READING
        self.refusal: Unreadable | None = None
        self.begun = 0
        self.answers = threading.Event()
        self.answers.set()

    def read(self) -> list[Reading]:
        self.begun += 1
        assert self.answers.wait(DEADLINE_S), "a test left it hanging"
        if self.refusal:
            raise self.refusal
        return [self.reading]


class Bed:
    def __init__(
        self,
        board: Any = None,
        bound_s: float = DEADLINE_S,
        look_s: float = LOOK_S,
        calls: Callable[[], int] = lambda: 0,
    ) -> None:
        self.left: list[tuple[str, str]] = []
        self.clock, self.board = Hands(), board or Board()
        self.conditions = Conditions(self.clock)
        parts = (self.board, self.conditions, self.clock)
        self.watch = AcceleratorWatch(*parts, look_s, bound_s, calls, self._leave)

    def _leave(self, kind: str, cause: str) -> None:
        self.left.append((kind, cause))

    async def look(self, after_s: float = LOOK_S, **more: Any) -> float:
        self.clock.at_s += after_s
        if more:
            self.board.reading = replace(READING, **more)
        return await self.watch.look()

    def told(self) -> list[tuple[str, str, str]]:
        return [(one.name, one.subject, one.severity) for one in self.conditions.all()]

    def only(self) -> Condition:
        (condition,) = self.conditions.all()
        return condition

    async def over(self) -> None:
        """Look until nothing is told any more."""
        async with asyncio.timeout(DEADLINE_S):
            while self.told():
                await self.look(0.0)

    def taken_j(self) -> float | None:
        return self.watch.shown().accelerators[0].energy_taken_j


async def test_the_last_reading_is_shown_with_its_age() -> None:
    bed = Bed()
    assert bed.watch.shown().age_s is None
    assert await bed.look() == LOOK_S
    bed.clock.at_s += 3
    shown = await bed.watch.state()
    assert (shown.backend, shown.age_s, shown.cause) == ("jetson", 3.0, None)
    assert [one.temperature_c for one in shown.accelerators] == [50.0]
    assert bed.told() == []


async def test_a_reading_that_hangs_is_said_within_its_bound_and_not_repeated() -> None:
    bed = Bed(bound_s=0.01)
    bed.board.answers.clear()
    for _ in range(3):
        assert await bed.look() == LOOK_S
        assert bed.told() == [("accelerator_mute", "jetson", "warning")]
    assert bed.board.begun == 1
    assert "hangs" in str(bed.watch.shown().cause)
    bed.board.answers.set()
    await bed.over()
    assert bed.watch.shown().cause is None
    assert bed.watch.shown().age_s == 0.0
    assert bed.board.begun == 1


async def test_nvml_that_hangs_holds_up_nobody() -> None:
    """Through the real binding: a call into the driver that does not return."""
    with bound(Card()) as (library, nvml):
        bed = Bed(nvml, bound_s=0.01)
        library.hangs = {"nvmlDeviceGetPowerUsage"}
        for _ in range(3):
            await bed.look()
            assert bed.told() == [("accelerator_mute", "nvml", "warning")]
        await eventually(lambda: "nvmlDeviceGetPowerUsage" in library.calls, "it hangs there")
        library.released.set()
        await bed.over()
        assert [one.present for one in bed.watch.shown().accelerators] == [True]
        assert library.calls.count("nvmlDeviceGetPowerUsage") == 1


async def test_a_card_that_is_lost_is_said_until_it_is_back() -> None:
    bed = Bed()
    await bed.look()
    lost = {"present": False, "cause": "NVML: GPU is lost", "fault": fault("off_the_bus")}
    assert await bed.look(**lost) == RETRY_S
    condition = bed.only()
    assert (condition.name, condition.subject) == ("accelerator_lost", "gpu")
    assert condition.cause == "GPU is not there any more: NVML: GPU is lost"
    assert condition.remedy.startswith("reboot")
    assert await bed.look(present=True) == LOOK_S
    assert bed.told() == []


async def test_a_driver_that_does_not_fit_is_a_warning_and_one_that_is_not_there_a_note() -> None:
    with bound(Card()) as (library, nvml):
        bed = Bed(nvml)
        library.refuses = {"nvmlInitWithFlags": VERSION_MISMATCH}
        assert await bed.look() == RETRY_S
        assert bed.told() == [("accelerator_lost", "nvml", "warning")]
        assert "mismatch" in str(bed.watch.shown().cause)
        library.refuses = {}
        await bed.look()
        assert (bed.told(), bed.watch.shown().cause) == ([], None)
    bed = Bed()
    bed.board.refusal = Unreadable("NVML: not there", "install it", fault("ep_missing"))
    await bed.look()
    assert bed.told() == [("accelerator_lost", "jetson", "note")]
    bed.board.refusal = None
    await bed.look()
    bed.board.refusal = Unreadable("NVML: not there", "install it", fault("ep_missing"))
    await bed.look()
    assert bed.told() == [("accelerator_lost", "jetson", "warning")], "it was there before"


async def test_heat_is_a_warning_until_it_was_cool_for_a_while() -> None:
    bed = Bed()
    await bed.look(throttled=("thermal",))
    first = bed.only()
    assert (first.name, first.severity) == ("accelerator_slowed", "warning")
    assert first.cause == "GPU is slowed: it is too hot"
    await bed.look(CALM_S, throttled=())
    assert bed.only().since_us == first.since_us, "one condition, not one for each moment"
    await bed.look(throttled=())
    assert bed.told() == []
    await bed.look(temperature_c=95.0)
    assert bed.only().cause == "GPU is slowed: it is too hot"


async def test_full_load_is_no_condition_and_want_of_power_is_one() -> None:
    bed = Bed()
    await bed.look(throttled=("power_cap",))
    assert bed.told() == []
    await bed.look(throttled=("over_current",))
    assert bed.told() == [("accelerator_slowed", "gpu", "note")]
    await bed.look(throttled=("under_voltage",))
    condition = bed.only()
    assert condition.severity == "warning"
    assert "supply voltage" in condition.cause
    assert "power supply" in condition.remedy


async def test_errors_of_the_hardware_are_said_and_those_of_programs_counted() -> None:
    bed = Bed()
    await bed.look(xids=(31, 13, 45, 31))
    assert bed.told() == []
    assert bed.watch.shown().accelerators[0].xid_counts == {"13": 1, "31": 2, "45": 1}
    await bed.look(xids=(95,))
    assert bed.only().cause == "GPU reports Xid 95"
    await bed.look(ERRORS_CALM_S, xids=())
    assert bed.told() == [("accelerator_errors", "gpu", "warning")]
    await bed.look(xids=())
    assert bed.told() == []
    await bed.look(ecc_uncorrected_errors=2)
    assert bed.only().cause == "GPU reports 2 uncorrected errors of its memory"
    await bed.look(ERRORS_CALM_S + LOOK_S, ecc_uncorrected_errors=2)
    assert bed.told() == [], "no more came"
    await bed.look(xids=tuple(range(200, 200 + XIDS_MAX)))
    assert len(bed.watch.shown().accelerators[0].xid_counts) == XIDS_MAX


async def test_a_reading_is_of_a_class_too() -> None:
    bed = Bed()

    async def kind(**more: Any) -> str | None:
        await bed.look(**more)
        found = bed.watch.shown().accelerators[0].fault
        return found.kind if found else None

    assert await kind() is None
    assert await kind(throttled=("power_cap", "over_current")) is None
    assert await kind(throttled=("thermal",)) == "thermal"
    assert await kind(temperature_c=95.0) == "thermal"
    assert await kind(throttled=("thermal",), xids=(45, 109, 45)) == "hang"
    assert await kind(present=False, fault=fault("off_the_bus"), xids=(31,)) == "off_the_bus"


async def test_a_card_that_is_lost_is_left_once_each_time() -> None:
    bed = Bed()
    lost = {"present": False, "cause": "NVML: GPU is lost", "fault": fault("off_the_bus")}
    told = ("off_the_bus", "GPU: NVML: GPU is lost")
    await bed.look()
    for _ in range(3):
        await bed.look(**lost)
    assert bed.left == [told]
    await bed.look(present=True)
    await bed.look(**lost)
    assert bed.left == [told, told]


@pytest.mark.parametrize(
    ("wrong", "left"),
    [
        ({"xids": (79,)}, [("off_the_bus", "GPU: Xid 79")]),
        ({"xids": (13, 79, 31, 45)}, [("off_the_bus", "GPU: Xid 79")]),  # what it brings with it
        ({"xids": (119,)}, [("hang", "GPU: Xid 119")]),
        ({"xids": (95,)}, [("sticky", "GPU: Xid 95")]),  # its memory: only a reset helps
        ({"xids": (8, 13, 31, 43, 45)}, []),  # of programs; they are ended for it
        ({"throttled": ("thermal",)}, []),
        ({"temperature_c": 99.0}, []),
        (
            {"present": False, "cause": "NVML: RM", "fault": fault("driver_mismatch", "reboot")},
            [("driver_mismatch", "GPU: NVML: RM")],
        ),
    ],
)
async def test_what_is_useless_is_left_and_what_is_slow_is_not(
    wrong: dict[str, Any], left: list[tuple[str, str]]
) -> None:
    bed = Bed()
    await bed.look(**wrong)
    assert bed.left == left


async def test_nobody_leaves_what_cannot_be_asked() -> None:
    """A driver that was installed while the old one runs on: processes that use it go on."""
    with bound(Card()) as (library, nvml):
        bed = Bed(nvml)
        await bed.look()
        library.refuses = {"nvmlInitWithFlags": VERSION_MISMATCH}
        nvml._end()
        await bed.look()
        assert bed.told() == [("accelerator_lost", "nvml", "warning")]
        assert bed.left == []


async def test_energy_is_power_over_time() -> None:
    bed = Bed()
    await bed.look(power_w=10.0)
    assert bed.taken_j() == 0.0
    await bed.look(5.0, power_w=20.0)
    assert bed.taken_j() == 75.0
    await bed.look(GAP_S + 1, power_w=20.0)
    assert bed.taken_j() == 75.0, "nobody knows what it took meanwhile"
    await bed.look(5.0, power_w=None)
    await bed.look(5.0, power_w=20.0)
    assert bed.taken_j() == 75.0
    await bed.look(5.0, power_w=20.0)
    assert bed.taken_j() == 175.0


async def test_energy_is_the_boards_own_count_where_it_has_one() -> None:
    bed = Bed()
    await bed.look(energy_j=1000.0)
    assert bed.taken_j() == 0.0
    await bed.look(GAP_S * 10, energy_j=1500.0)
    assert bed.taken_j() == 500.0
    await bed.look(energy_j=30.0)
    assert bed.taken_j() == 530.0, "its driver was loaded again"


async def test_a_board_that_measures_nothing_has_no_energy() -> None:
    bed = Bed()
    await bed.look(power_w=None)
    assert bed.taken_j() is None


async def test_where_there_is_nothing_it_looks_once() -> None:
    bed = Bed(NoAccelerator())
    await bed.watch.run()
    assert (bed.watch.shown().backend, bed.watch.shown().accelerators) == ("none", [])


async def test_it_looks_again_and_again() -> None:
    bed = Bed(look_s=0.001)
    loop = asyncio.create_task(bed.watch.run())
    await eventually(lambda: bed.board.begun > 2, "it looks again")
    loop.cancel()


async def test_what_a_call_takes_is_the_mean_of_the_last_minutes() -> None:
    calls = 0
    bed = Bed(calls=lambda: calls)
    for _ in range(3):
        await bed.watch.look()
        bed.clock.at_s += LOOK_S
    assert bed.watch.shown().energy_per_call_j is None, "there was none"
    calls = 4
    await bed.watch.look()
    assert bed.watch.shown().energy_per_call_j == pytest.approx(10.0 * 3 * LOOK_S / 4)
    for _ in range(int(PER_CALL_S / LOOK_S) + 1):
        bed.clock.at_s += LOOK_S
        await bed.watch.look()
    assert bed.watch.shown().energy_per_call_j is None, "they are long ago"
