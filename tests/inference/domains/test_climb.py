"""When the way back to the accelerator is tried; the probes themselves: test_twinned.py."""

import asyncio

from agent import config
from agent.clock import Clock
from agent.inference.domains.climb import Climb
from agent.inference.domains.ladder import Ladder
from tests.inference.domains.bed import until


class Slow(Clock):
    """Goes on when a test says so, whatever the timers of the loop say."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return self.now_s


class Above:
    name = "d"

    def __init__(self) -> None:
        self.tried: list[list[str]] = []

    async def try_out(self, names: list[str]) -> None:
        self.tried.append(names)

    async def take_back(self, names: list[str]) -> None:
        raise AssertionError(f"{names} may not go back after one probe")

    def climbed(self, names: list[str]) -> None:
        pass


async def test_a_timer_that_comes_early_probes_nothing() -> None:
    """As those of uvloop do, which are of whole milliseconds."""
    clock, above = Slow(), Above()
    ladder = Ladder(config.Domain(models=["m"], probe_s_min=0.01, probes_min=2))
    ladder.fell("m", "sticky", "CUDA failure 700", clock.monotonic())
    climbing = asyncio.create_task(Climb(above, ladder, clock).run())
    try:
        await until(lambda: clock.asked > 10, "its timer has come again and again")
        assert (above.tried, ladder.probes["passed"]) == ([], 0)
        clock.now_s += 0.01
        await until(lambda: above.tried, "now it is due")
        assert (above.tried, ladder.probes["passed"]) == ([["m"]], 1)
    finally:
        climbing.cancel()
