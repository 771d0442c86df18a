"""The machine's own watchdog, /dev/watchdog*: it resets the machine unless it is fed.

To open it is to arm it, so whatever can be read beforehand is read from sysfs. What a driver makes
of a timeout is its own: it is set, read back, and reported as it is. It is disarmed by the letter
`V` before the close; a driver built with `nowayout` goes on all the same, and that is reported too.
The numbers are those of the kernel's include/uapi/linux/watchdog.h, the files those of its
Documentation/ABI/testing/sysfs-class-watchdog; older kernels (before 2023) have no `options`.
"""

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from agent.errors import HoldfastError

log = logging.getLogger("watchdog")
SYSFS = Path("/sys/class/watchdog")
MAGIC = b"V"
_INT = struct.Struct("i")
_READ, _WRITE, _KIND = 2, 1, ord("W")
OVERHEAT, FAN, EXTERN1, EXTERN2, POWER_UNDER, CARD_RESET, POWER_OVER = (1 << n for n in range(7))
CAUSES = {
    CARD_RESET: "watchdog",
    OVERHEAT: "overheat",
    FAN: "fan",
    POWER_UNDER: "power_low",
    POWER_OVER: "power_high",
    EXTERN1: "external",
    EXTERN2: "external",
}

# Those that say that they reset the machine (`bootstatus`), and leave that out of their options
# (drivers/watchdog: i6300esb.c, imx2_wdt.c, sp5100_tco.c). Those of a Jetson, a Raspberry Pi and an
# Intel chipset never say it (timer-tegra186.c, tegra_wdt.c, bcm2835_wdt.c, iTCO_wdt.c).
TELL = ("i6300ESB timer", "imx2+ watchdog", "SP5100 TCO timer")

Ioctl = Callable[[int, int, bytes], bytes]


def _number(direction: int, number: int) -> int:
    """As the kernel's _IOR and _IOWR make it; a wrong direction is answered with ENOTTY."""
    return direction << 30 | _INT.size << 16 | _KIND << 8 | number


KEEPALIVE = _number(_READ, 5)
SET_TIMEOUT, GET_TIMEOUT = _number(_READ | _WRITE, 6), _number(_READ, 7)


class WatchdogFound(Struct, frozen=True):
    """What is known of it without opening it; seconds. None: its driver does not say.

    `armed`: somebody has it open, and feeds it or is to. `time_left_s` is what the hardware has
    left, where the kernel feeds a short one in between, too. `pretimeout_s` before the end the
    kernel is told. `causes` are of the last reset; no cause: it has none to tell, as after a power
    cut.
    """

    identity: str
    armed: bool | None
    timeout_s: int | None
    timeout_s_max: int | None
    time_left_s: int | None
    pretimeout_s: int | None
    nowayout: bool
    causes: tuple[str, ...] | None


class WatchdogBusy(HoldfastError):
    """Somebody else feeds it."""


class HardwareWatchdog:
    """One of them. `arm`, then `feed` within each `timeout_s`, until `disarm`."""

    def __init__(self, device: Path, sysfs: Path = SYSFS, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.timeout_s = 0  # what it really is, once it is armed
        self._device = device
        self._sysfs = sysfs / device.name
        self._ioctl = ioctl
        self._fd = -1

    @property
    def armed(self) -> bool:
        """Whether it resets this machine unless it is fed."""
        return self._fd >= 0

    def found(self) -> WatchdogFound | None:
        """What sysfs tells of it; None: there is no such device."""
        if not self._sysfs.is_dir():
            return None
        status = self._number("bootstatus")
        causes = None
        if status is not None and (status or self._tells()):
            causes = tuple(sorted({name for bit, name in CAUSES.items() if status & bit}))
        return WatchdogFound(
            self._text("identity"),
            {"active": True, "inactive": False}.get(self._text("state")),
            self._number("timeout"),
            self._number("max_timeout") or None,
            self._number("timeleft"),
            self._number("pretimeout"),
            self._text("nowayout") == "1",
            causes,
        )

    def arm(self, timeout_s: int) -> int:
        """Open it, and have it wait for `timeout_s`; the seconds that it really waits.

        Raises WatchdogBusy, HoldfastError.
        """
        try:
            self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise WatchdogBusy(
                    f"{self._device} is fed by somebody else",
                    "one owner is enough: set watchdog.owner: systemd, or have systemd leave it "
                    "(RuntimeWatchdogSec=0)",
                ) from error
            raise HoldfastError(
                f"{self._device}: {error.strerror}", "check watchdog.device, and who may write it"
            ) from error
        try:
            with suppress(OSError):  # a fixed timeout: what it is, is read below
                self._ioctl(self._fd, SET_TIMEOUT, _INT.pack(timeout_s))
            self.timeout_s = int(_INT.unpack(self._ioctl(self._fd, GET_TIMEOUT, _INT.pack(0)))[0])
        except OSError as error:
            self.disarm()
            raise HoldfastError(
                f"{self._device} does not say how long it waits: {error.strerror}",
                "it cannot be relied upon: set watchdog.owner: none, or another watchdog.device",
            ) from error
        return self.timeout_s

    def feed(self) -> None:
        """All is well. Raises HoldfastError where it cannot be told."""
        try:
            self._ioctl(self._fd, KEEPALIVE, _INT.pack(0))
        except OSError as error:
            raise HoldfastError(
                f"{self._device}: {error.strerror}", "the machine is reset unless this goes over"
            ) from error

    def disarm(self) -> bool:
        """Close it in peace; whether it will not reset the machine, as far as sysfs tells."""
        if self._fd < 0:
            return True
        fd, self._fd = self._fd, -1
        try:
            os.write(fd, MAGIC)
        except OSError as error:
            log.warning("%s: it stays armed: %s", self._device, error.strerror)
        finally:
            os.close(fd)
        return self._text("state") != "active"

    def _tells(self) -> bool:
        """Whether its driver would say that it reset the machine; where nobody knows, it does not.

        (The device would tell its options, too, once it is open; but that is to arm it.)
        """
        if self._text("identity") in TELL:
            return True
        try:
            return bool(int(self._text("options"), 16) & CARD_RESET)
        except ValueError:  # an older kernel
            return False

    def _text(self, name: str) -> str:
        try:
            return (self._sysfs / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _number(self, name: str) -> int | None:
        text = self._text(name)
        return int(text) if text.isdigit() else None
