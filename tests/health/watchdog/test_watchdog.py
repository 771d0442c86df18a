"""The tick: what it begins, whom it feeds, what it tells; and a loop that stands still."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.health.watchdog.budgets import Budgets
from agent.health.watchdog.disarmed import Disarmed
from agent.health.watchdog.policy import Reading, Rule, Step
from agent.health.watchdog.watchdog import TICK_S, Event, Part, Remedy, Watchdog
from tests.outside import DEADLINE_S, ROOT

RULE = Rule(10.0, 24.0, (Step("instance", 1, 600.0, 10.0), Step("agent", 1, 600.0, 10.0)))
SPENT = "all 6 resets of a day of running are spent"
MACHINE = Rule(
    *(10.0, 24.0),
    (
        Step("agent", 2, 3600.0, 10.0),
        Step("reboot", 1, 21_600.0, 10.0, resets=True),
        Step("reset", 1, 86_400.0, 10.0, resets=True),
    ),
)


class Still(Clock):
    """Moves when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Fed:
    def __init__(self) -> None:
        self.times = 0

    def feed(self) -> None:
        self.times += 1


class Bench:
    """A watchdog, one part, and what became of them."""

    def __init__(self, folder: Path, rule: Rule = RULE) -> None:
        self.rule = rule
        self.why_no_reset = ""
        self.clock, self.fed, self.events = Still(), Fed(), list[Event]()
        self.conditions = Conditions(self.clock)
        self.reading = Reading(0, owed=True)
        self.begun: list[str] = []
        self.there = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: HoldfastError | None = None
        parts = (self._parts, [self.fed], self.events.append, self.conditions, self.clock)
        self.budgets = Budgets(folder / "ladder.json", self.clock)
        disarmed = Disarmed(self.conditions, self.clock)
        more = (disarmed, self.budgets, lambda: self.why_no_reset)
        self.watchdog = Watchdog(*parts, folder / "hung.txt", *more)

    def _parts(self) -> list[Part]:
        remedies = {step.remedy: self._remedy(step.remedy) for step in self.rule.steps}
        return [Part("domain d", lambda: self.reading, self.rule, remedies)] if self.there else []

    def _remedy(self, name: str) -> Remedy:
        async def act(_: str) -> str:
            self.begun.append(name)
            await self.gate.wait()
            if self.fault:
                raise self.fault
            return "done"

        return act

    async def pass_s(self, seconds: float, step_s: float = TICK_S) -> None:
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s:
            self.clock.now_s += step_s
            self.watchdog.tick()
            for _ in range(5):
                await asyncio.sleep(0)

    def held(self) -> dict[str, str]:
        return {c.name: f"{c.severity} {c.cause}" for c in self.conditions.all()}


@asynccontextmanager
async def bench(folder: Path, rule: Rule = RULE) -> AsyncIterator[Bench]:
    made = Bench(folder, rule)
    made.watchdog._ticked_s = made.clock.now_s
    made.watchdog._dump = made.watchdog._opened()
    async with made.watchdog, made.budgets.file:
        yield made


async def test_who_moves_is_left_alone_and_all_are_fed(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        for done in range(100):
            made.reading = Reading(done, owed=True)
            await made.pass_s(TICK_S)
        assert not made.begun
        assert made.fed.times == 100
        assert not made.held()


async def test_the_first_remedy_comes_in_time_and_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.pass_s(24.0)
        assert made.held()["part_stands_still"].startswith("warning")
        assert not made.begun
        await made.pass_s(2 * TICK_S)
        assert made.begun == ["instance"]
        assert made.held()["part_stands_still"].startswith("critical")
        why = "the watchdog saw no progress of domain d for 24 s"
        assert made.events == [Event("domain d", "instance", why, "done")]
        assert made.fed.times == 14, "it is being seen to"
        made.reading = Reading(1, owed=True)
        await made.pass_s(TICK_S)
        assert not made.held()


async def test_who_waits_for_a_processor_is_told_of_and_not_treated(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        for i in range(100):
            made.reading = Reading(0, owed=True, held_up_s=0.95 * TICK_S * i)
            await made.pass_s(TICK_S)
        assert not made.begun
        told = "domain d owes work and makes no progress: it waits for a processor"
        assert made.held()["part_stands_still"].startswith(f"warning {told}")
        assert made.watchdog.fed
        assert made.watchdog.seen()[0].still_s == 99 * TICK_S, "as it is"
        await made.pass_s(24.0)
        assert made.begun == ["instance"], "now it had one"


async def test_nobody_is_fed_once_nothing_is_left_to_try(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.pass_s(60.0)
        assert made.begun == ["instance", "agent"]
        times = made.fed.times
        await made.pass_s(60.0)
        assert made.fed.times == times
        assert not made.watchdog.fed
        made.reading = Reading(1, owed=True)
        await made.pass_s(TICK_S)
        assert made.watchdog.fed


async def test_nobody_starves_for_a_part_that_is_spared_and_it_is_told_all_the_same(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, replace(RULE, spared=True)) as made:
        await made.pass_s(200.0)
        assert made.begun == ["instance", "agent"]
        assert made.fed.times == 100
        told = made.held()["part_stands_still"]
        assert told.startswith("critical")
        assert told.endswith("tried: instance, agent")


async def test_a_remedy_that_does_not_end_is_not_waited_for_nor_doubled(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.gate.clear()
        await made.pass_s(60.0)
        assert made.begun == ["instance"]
        assert not made.events


async def test_a_remedy_that_fails_is_an_event_and_the_next_one_comes(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.fault = HoldfastError("it does not end", "wait")
        await made.pass_s(60.0)
        assert [one.remedy for one in made.events] == ["instance", "agent"]
        assert made.events[0].outcome == "it failed: it does not end"


async def test_who_is_dead_again_after_each_restart_gets_to_the_reboot_and_the_reset(
    tmp_path: Path,
) -> None:
    """Each time another agent begins, and in it the part stands still once more."""
    begun: list[str] = []
    for start in range(5):
        async with bench(tmp_path, MACHINE) as made:
            made.clock.now_s = 1000.0 + 100.0 * start  # the axis goes on, in one boot
            made.watchdog._ticked_s = made.clock.now_s
            await made.pass_s(28.0)
            begun += made.begun
    assert begun == ["agent", "agent", "reboot", "reset"]


async def test_a_machine_that_may_not_be_reset_is_neither_reset_nor_starved(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, MACHINE) as made:
        made.why_no_reset = SPENT
        await made.pass_s(120.0)
        assert made.begun == ["agent", "agent"]
        assert made.watchdog.fed
        assert "not reset for it: all 6 resets of a day" in made.held()["part_stands_still"]
        made.why_no_reset = ""
        await made.pass_s(TICK_S)
        assert made.begun == ["agent", "agent", "reboot"]
        assert "not reset for it" not in made.held()["part_stands_still"]
        await made.pass_s(60.0)
        assert made.begun[-1] == "reset"
        assert not made.watchdog.fed, "nothing is left to try"
        made.why_no_reset = SPENT
        await made.pass_s(TICK_S)
        assert made.watchdog.fed, "who starves is reset by somebody else"


async def test_disarmed_it_judges_and_tells_and_does_nothing_until_it_is_over(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as made:
        made.watchdog.disarm(100.0)
        await made.pass_s(90.0)
        assert not made.begun
        assert made.fed.times == 45
        told = made.held()
        assert told["part_stands_still"].startswith("critical")
        assert "for 2 min" in told["watchdog_disarmed"]
        await made.pass_s(14.0)
        assert made.begun == ["instance"]
        assert "watchdog_disarmed" not in made.held()
        made.watchdog.disarm(100.0)
        await made.pass_s(60.0)
        assert made.watchdog.fed
        assert made.begun == ["instance"]
        made.watchdog.arm()
        await made.pass_s(TICK_S)
        assert made.begun == ["instance", "agent"]
        orders = [one.remedy for one in made.events if one.part == "watchdog"]
        assert orders == ["disarm", "disarm", "arm"]


async def test_a_machine_that_slept_is_not_dead(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.pass_s(10.0)
        await made.pass_s(7200.0, step_s=3600.0)
        assert not made.begun, "two looks, and hours in which nothing ran"


async def test_a_clock_that_goes_back_does_no_harm(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.clock.now_s -= 500.0
        made.watchdog.tick()
        assert made.watchdog.now_s == 0.0
        await made.pass_s(28.0)
        assert made.begun == ["instance"]


async def test_a_part_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.pass_s(14.0)
        assert made.held()
        made.there = False
        await made.pass_s(TICK_S)
        assert not made.held()
        assert made.watchdog.seen() == []


async def test_a_part_that_comes_and_goes_does_not_begin_its_ladder_anew(tmp_path: Path) -> None:
    """Gone for a moment now and then, it climbs as one that is there all the time."""
    async with bench(tmp_path) as made:
        for _ in range(6):
            await made.pass_s(40.0)
            made.there = False
            await made.pass_s(TICK_S)
            made.there = True
        assert made.begun == ["instance", "agent"]


async def test_what_is_seen_is_shown(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.reading = Reading(7, owed=False, why="nothing to do")
        await made.pass_s(TICK_S)
        (seen,) = made.watchdog.seen()
        assert (seen.part, seen.verdict, seen.done, seen.why) == (
            *("domain d", "fine"),
            *(7, "nothing to do"),
        )


HUNG = """
import asyncio, ctypes, sys
from pathlib import Path
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.watchdog import watchdog

watchdog.TICK_S, watchdog.HUNG_S = 0.02, 0.5

def stuck():
    if sys.argv[2] == "lock held":
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
    while True:
        pass

async def main():
    clock = Clock()
    parts = (list, [], print, Conditions(clock), clock, Path(sys.argv[1]))
    async with watchdog.Watchdog(*parts) as made:
        asyncio.get_running_loop().call_later(0.1, stuck)
        await made.run()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["lock held", "spinning"])
def test_a_loop_that_stands_still_ends_and_leaves_its_stacks(tmp_path: Path, how: str) -> None:
    file = tmp_path / "hung.txt"
    command = [sys.executable, "-c", HUNG, str(file), how]
    done = subprocess.run(command, cwd=ROOT, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert "in stuck" in file.read_text()


async def test_in_order_nothing_is_left(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.pass_s(TICK_S)
        assert (tmp_path / "hung.txt").exists()
    assert not (tmp_path / "hung.txt").exists()
