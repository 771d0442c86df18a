"""One GPIO line, through the kernel's character device (include/uapi/linux/gpio.h, v2)."""

import asyncio
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from agent.errors import HoldfastError

_LINES_MAX, _ATTRS_MAX = 64, 10
# struct gpio_v2_line_request: the offsets of the lines, who asks; struct gpio_v2_line_config: its
# flags, how many attributes, each {id, padding, value, mask}; how many lines, events, padding, fd.
_REQUEST = struct.Struct(f"={_LINES_MAX}I32s Q6I {24 * _ATTRS_MAX}s II5I i")
_ATTRIBUTE = struct.Struct("=II Q Q")
REQUEST = 0xC250B407  # GPIO_V2_GET_LINE_IOCTL: _IOWR(0xB4, 0x07, 592 bytes)
ACTIVE_LOW, OUTPUT = 1 << 1, 1 << 3  # enum gpio_v2_line_flag
OUTPUT_VALUES = 2  # enum gpio_v2_line_attr_id

Ioctl = Callable[[int, int, bytes], bytes]


class GpioLine:
    """Made active for a while: a relay that cuts the power, a reset line that is pulled."""

    def __init__(
        self, chip: Path, line: int, hold_s: float, *, low: bool, ioctl: Ioctl = fcntl.ioctl
    ) -> None:
        """`low`: it is active when it is low."""
        self.name = "gpio"
        self._chip = chip
        self._line = line
        self._hold_s = hold_s
        self._low = low
        self._ioctl = ioctl

    async def look(self) -> str:
        """What would be done. Raises HoldfastError where it could not."""
        try:
            mode = self._chip.stat().st_mode
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error
        if not stat.S_ISCHR(mode):
            raise self._cannot("it is no device")
        if not os.access(self._chip, os.R_OK | os.W_OK):
            raise self._cannot("this user may not use it")
        level = "low" if self._low else "high"
        return f"would hold line {self._line} of {self._chip} {level} for {self._hold_s:g} s"

    async def pull(self, _: str) -> None:
        """Hold it, then let go. Raises HoldfastError."""
        try:
            chip = os.open(self._chip, os.O_RDWR | os.O_CLOEXEC)
            try:
                held = self._request(chip)
            finally:
                os.close(chip)
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error
        try:
            await asyncio.sleep(self._hold_s)
        finally:
            os.close(held)

    def _request(self, chip: int) -> int:
        """The line as an output, active from its first moment; the descriptor that holds it."""
        flags = OUTPUT | (ACTIVE_LOW if self._low else 0)
        active = _ATTRIBUTE.pack(OUTPUT_VALUES, 0, 1, 1)
        lines = (self._line, *[0] * (_LINES_MAX - 1))
        config = (flags, 1, *[0] * 5, active)
        asked = _REQUEST.pack(*lines, b"holdfast", *config, 1, 0, *[0] * 5, 0)
        return int(_REQUEST.unpack(self._ioctl(chip, REQUEST, asked))[-1])

    def _cannot(self, why: str) -> HoldfastError:
        return HoldfastError(
            f"{self._chip}, line {self._line}: {why}",
            "check watchdog.reset_gpio, and that the agent's user may use the chip (gpioinfo)",
        )
