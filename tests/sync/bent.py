"""A clock that a test turns."""

import math
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

import msgspec

from agent import config
from agent.clock import Clock
from agent.hours import local_time
from agent.records import Stamp
from agent.sync.budget.pace import OVERHEAD_BYTES, Pace

BEGIN_S = 1000.0


class Bent(Clock):
    """Monotonic time passes by `pass_s` alone, wall time with it; either can be set."""

    def __init__(self, at: datetime, *, boot: str = "boot") -> None:
        self.boot = boot
        self.mono = BEGIN_S
        self.wall_s = at.timestamp()
        self.true = True

    def monotonic(self) -> float:
        return self.mono

    def wall(self) -> float:
        return self.wall_s

    def synchronised(self) -> bool:
        return self.true

    def stamp(self) -> Stamp:
        return Stamp(self.boot, int(self.mono * 1e9), int(self.wall_s * 1e6))

    def pass_s(self, seconds: float) -> None:
        self.mono += seconds
        self.wall_s += seconds


def settings(**more: Any) -> config.Link:
    return msgspec.convert({"ack_from": "ingest", **more}, config.Link)


def paced(clock: Bent, zone: tzinfo, **more: Any) -> Pace:
    return Pace(settings(**more), clock, lambda asked: local_time(asked, zone))


def sent_until(
    pace: Pace,
    clock: Bent,
    until: Callable[[], bool],
    size_bytes: int = 5000,
    *,
    live: bool = False,
    step_s: float = math.inf,
) -> int:
    """Send as `take` does, message after message; the bytes that went, overhead and all."""
    total = 0
    while not until():
        if wait_s := pace.wait_s(size_bytes, live=live):
            clock.pass_s(min(wait_s, step_s))
        else:
            pace.spent(size_bytes)
            total += size_bytes + OVERHEAD_BYTES
    return total


class Told(Clock):
    """This machine's own, of which a test says whether it is synchronised, and what day it is."""

    def __init__(self, *, sure: bool, shift_s: float = 0.0) -> None:
        super().__init__()
        self.sure = sure
        self.shift_s = shift_s

    def wall(self) -> float:
        return super().wall() + self.shift_s

    def synchronised(self) -> bool:
        return self.sure
