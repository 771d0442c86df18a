"""Time: monotonic for every decision, wall time only as a label (promise 6)."""

import time
from pathlib import Path

from agent.records import Stamp


class Clock:
    """The machine's clocks; tests pass their own.

    `boot` names the boot the monotonic readings belong to: they compare only within one boot.
    """

    def __init__(self) -> None:
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def monotonic(self) -> float:
        """Seconds since an arbitrary start, never going back; runs on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Seconds since 1970 as the machine believes it; a label, never a basis for a decision."""
        return time.time()

    def stamp(self) -> Stamp:
        """Now, as it is written on a record."""
        return Stamp(self.boot, int(self.monotonic() * 1e9), int(self.wall() * 1e6))
