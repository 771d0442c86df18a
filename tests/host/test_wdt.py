"""The hardware watchdog against a device whose driver is played; a real one is in the appliance."""

import errno
import os
import struct
from pathlib import Path

import pytest

from agent.errors import HoldfastError
from agent.host import wdt
from agent.host.wdt import HardwareWatchdog, WatchdogBusy


class Driver:
    """As i6300esb: whole seconds up to a maximum; what it is asked, it keeps."""

    def __init__(self, maximum_s: int = 2046, *, fixed_s: int | None = None) -> None:
        self.timeout_s = fixed_s or 30
        self.fed = 0
        self.mute = False
        self._maximum_s, self._fixed = maximum_s, fixed_s is not None

    def __call__(self, fd: int, number: int, content: bytes) -> bytes:
        (value,) = struct.unpack("i", content)
        if self.mute:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if number == wdt.SET_TIMEOUT:
            if self._fixed:
                raise OSError(errno.EOPNOTSUPP, "fixed")
            if value > self._maximum_s:
                raise OSError(errno.EINVAL, "too long")
            self.timeout_s = value
        elif number == wdt.KEEPALIVE:
            self.fed += 1
        elif number != wdt.GET_TIMEOUT:
            raise OSError(errno.ENOTTY, "unknown")
        return struct.pack("i", self.timeout_s)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "watchdog0"
    path.touch()
    folder = tmp_path / "sys" / "watchdog0"
    folder.mkdir(parents=True)
    found = {"identity": "i6300ESB timer", "timeout": "30", "max_timeout": "2046"}
    told(path, **found, bootstatus="32", nowayout="0", state="inactive")
    return path


def told(device: Path, **found: str) -> None:
    """What its driver says in sysfs."""
    for name, text in found.items():
        (device.parent / "sys" / device.name / name).write_text(f"{text}\n")


def made(device: Path, driver: Driver) -> HardwareWatchdog:
    return HardwareWatchdog(device, device.parent / "sys", driver)


def test_the_numbers_are_the_kernels() -> None:
    assert (wdt.SET_TIMEOUT, wdt.GET_TIMEOUT) == (0xC0045706, 0x80045707)
    assert wdt.KEEPALIVE == 0x80045705


def test_what_is_known_before_it_is_armed(device: Path) -> None:
    found = made(device, Driver()).found()
    assert found == wdt.WatchdogFound(
        "i6300ESB timer", False, 30, 2046, None, None, nowayout=False, causes=("watchdog",)
    )
    told(device, state="active", timeleft="17", pretimeout="5", nowayout="1", max_timeout="0")
    found = made(device, Driver()).found()
    assert found == wdt.WatchdogFound(
        "i6300ESB timer", True, 30, None, 17, 5, nowayout=True, causes=("watchdog",)
    )
    assert HardwareWatchdog(device.parent / "watchdog9", device.parent / "sys").found() is None


@pytest.mark.parametrize(
    ("said", "causes"), [("0", ()), ("33", ("overheat", "watchdog")), ("", None)]
)
def test_why_the_machine_was_reset(device: Path, said: str, causes: tuple[str, ...] | None) -> None:
    told(device, bootstatus=said)
    found = made(device, Driver()).found()
    assert found
    assert found.causes == causes


@pytest.mark.parametrize(
    ("identity", "options", "causes"),
    [
        ("Software Watchdog", "0x8180", None),
        ("SBSA Generic Watchdog", "0x81a0", ()),
        ("SBSA Generic Watchdog", "nonsense", None),
        # Kernels before 2023 do not say what a driver can: JetPack 5 and 6, Debian 12.
        ("NVIDIA Tegra186 WDT", None, None),
        ("Broadcom BCM2835 Watchdog timer", None, None),
        ("iTCO_wdt", None, None),
        # These do, and do not say that they do.
        ("i6300ESB timer", None, ()),
        ("imx2+ watchdog", "0x8180", ()),
        ("", None, None),
    ],
)
def test_a_driver_that_never_tells_a_reset_has_not_said_that_there_was_none(
    device: Path, identity: str, options: str | None, causes: tuple[str, ...] | None
) -> None:
    told(device, identity=identity, bootstatus="0", **({"options": options} if options else {}))
    found = made(device, Driver()).found()
    assert found
    assert found.causes == causes
    told(device, bootstatus="32")
    found = made(device, Driver()).found()
    assert found
    assert found.causes == ("watchdog",), "who says it, says it"


def test_it_is_armed_fed_and_disarmed_by_its_letter(device: Path) -> None:
    driver = Driver()
    watchdog = made(device, driver)
    assert not watchdog.armed
    assert watchdog.arm(60) == 60
    assert watchdog.armed
    watchdog.feed()
    assert driver.fed == 1
    assert watchdog.disarm()
    assert device.read_bytes() == b"V"
    assert not watchdog.armed
    assert watchdog.disarm(), "twice does no harm"


@pytest.mark.parametrize(
    ("driver", "really_s"), [(Driver(maximum_s=20), 30), (Driver(fixed_s=16), 16)]
)
def test_what_it_really_waits_is_said(device: Path, driver: Driver, really_s: int) -> None:
    watchdog = made(device, driver)
    assert watchdog.arm(60) == really_s
    assert watchdog.timeout_s == really_s


def test_one_that_goes_on_is_reported(device: Path) -> None:
    told(device, state="active")
    watchdog = made(device, Driver())
    watchdog.arm(60)
    assert not watchdog.disarm()


def test_one_that_does_not_say_is_not_relied_upon_and_left_disarmed(device: Path) -> None:
    driver = Driver()
    driver.mute = True
    watchdog = made(device, driver)
    with pytest.raises(HoldfastError, match="how long"):
        watchdog.arm(60)
    assert not watchdog.armed
    assert device.read_bytes() == b"V"


def test_another_owner_is_named(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "open", taken)
    with pytest.raises(WatchdogBusy, match="somebody else") as error:
        made(device, Driver()).arm(60)
    assert "owner: systemd" in error.value.hint


def test_one_that_is_not_there_is_named(device: Path) -> None:
    with pytest.raises(HoldfastError, match="No such file"):
        HardwareWatchdog(device.parent / "none", device.parent / "sys", Driver()).arm(60)
