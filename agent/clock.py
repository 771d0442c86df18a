"""Time: monotonic for every decision, wall time only as a label (promise 6)."""

import ctypes
import time
from pathlib import Path

from agent.records import Stamp

_TIME_ERROR = 5  # adjtimex(2): what it answers while the clock is not synchronised
_STA_UNSYNC = 0x40


class _Timex(ctypes.Structure):
    """The kernel's `struct timex` as far as it is needed, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("errors", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 64),
    )


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

    def synchronised(self) -> bool:
        """Whether the kernel says that wall time is true; False where it does not say."""
        asked = _Timex(modes=0)  # changes nothing, so it needs no rights
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(asked))
        return 0 <= state < _TIME_ERROR and not asked.status & _STA_UNSYNC

    def stamp(self) -> Stamp:
        """Now, as it is written on a record."""
        mono_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Stamp(self.boot, mono_ns, time.time_ns() // 1000)
