"""When the hardware's watchdog is armed, fed and left, and what is said of it."""

import configparser

import pytest

from agent.config import Watchdog
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.health.watchdog.disarmed import Disarmed
from agent.health.watchdog.hardware import NEEDED_S, RETRY_S, Hardware
from tests.health.watchdog.test_watchdog import Still
from tests.outside import ROOT


class Device:
    def __init__(self, really_s: int = 90) -> None:
        self.armed = False
        self.really_s = really_s
        self.fed = self.tried = 0
        self.fault: HoldfastError | None = None
        self.stays = False

    def arm(self, timeout_s: int) -> int:
        self.tried += 1
        if self.fault:
            raise self.fault
        self.armed = True
        return self.really_s

    def feed(self) -> None:
        if self.fault:
            raise self.fault
        self.fed += 1

    def disarm(self) -> bool:
        self.armed = False
        return not self.stays


def made(device: Device) -> tuple[Hardware, Conditions, Still]:
    clock = Still()
    conditions = Conditions(clock)
    return Hardware(device, "/dev/watchdog0", 90, conditions, clock), conditions, clock


def held(conditions: Conditions) -> list[str]:
    return [one.name for one in conditions.all()]


def test_the_first_healthy_tick_arms_it_and_the_next_feed_it() -> None:
    device = Device()
    hardware, conditions, _ = made(device)
    assert not device.armed
    hardware.feed()
    assert (device.armed, device.fed) == (True, 0)
    hardware.feed()
    assert device.fed == 1
    hardware.close()
    assert not device.armed
    assert not held(conditions)


@pytest.mark.parametrize("really_s", [16, 75, 89])
def test_one_that_waits_too_short_is_said(really_s: int) -> None:
    """75 s is what a restart of a stopped agent was seen to take (docs/appliance.md)."""
    hardware, conditions, _ = made(Device(really_s))
    hardware.feed()
    (condition,) = conditions.all()
    assert condition.name == "watchdog_short"
    assert f"waits for {really_s} s (90 s were asked for)" in condition.cause


def test_what_is_asked_for_as_shipped_is_long_enough() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "provisioning" / "systemd" / "holdfast.service")
    names = ("WatchdogSec", "TimeoutStopSec", "RestartSec")
    down_s = sum(int(unit["Service"][name]) for name in names)
    assert down_s < NEEDED_S <= Watchdog().timeout_s, "and there is time to begin"


def test_one_feed_that_failed_is_said_until_the_next_that_does_not() -> None:
    device = Device()
    hardware, conditions, _ = made(device)
    hardware.feed()
    device.fault = HoldfastError("/dev/watchdog0: Input/output error", "it goes over, or resets")
    hardware.feed()
    assert held(conditions) == ["watchdog_unarmed"]
    device.fault = None
    hardware.feed()
    assert not held(conditions)


def test_one_that_cannot_be_armed_is_said_and_tried_again() -> None:
    device = Device()
    hardware, conditions, clock = made(device)
    device.fault = HoldfastError("somebody else feeds it", "one owner is enough")
    for _ in range(10):
        hardware.feed()
    assert device.tried == 1
    assert held(conditions) == ["watchdog_unarmed"]
    device.fault = None
    clock.now_s += RETRY_S
    hardware.feed()
    assert device.armed
    assert not held(conditions)


@pytest.mark.parametrize("stays", [True, False])
def test_one_that_goes_on_after_the_end_is_said(*, stays: bool) -> None:
    device = Device()
    device.stays = stays
    hardware, conditions, _ = made(device)
    hardware.feed()
    hardware.close()
    assert held(conditions) == ["watchdog_unarmed"] * stays


@pytest.mark.parametrize("stays", [True, False])
def test_one_that_is_disarmed_is_left_alone_where_it_can_be(*, stays: bool) -> None:
    device, clock = Device(), Still()
    device.stays = stays
    conditions = Conditions(clock)
    disarmed = Disarmed(conditions, clock)
    hardware = Hardware(device, "/dev/watchdog0", 90, conditions, clock, disarmed)
    hardware.feed()
    disarmed.disarm(60.0)
    for _ in range(5):
        hardware.feed()
    assert device.armed == stays, "what its driver does not let go is fed on"
    assert bool(device.fed) == stays
    clock.now_s += 61.0
    hardware.feed()
    assert device.armed
    assert not held(conditions)
