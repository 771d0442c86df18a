"""The watchdog: every TICK_S it asks each part what it has done, and sees to who stands still.

Whoever resets this machine (systemd, a hardware watchdog) is fed only while each part moves, or a
remedy for it is at work within its budget. Remedies are begun, never waited for.

The loop that this runs in is a part too, and cannot be asked: where it stands still for HUNG_S,
faulthandler, whose thread needs neither the loop nor the interpreter's lock, writes the stacks of
all threads to a file and ends the process. The next start reads that file.

Time is the sum of the ticks, each counted for COUNTED_S at most: while the machine slept or this
process was stopped, no part could move, and none is dead for it. (What ends a hung loop is a timer
in real time: a process that was stopped for HUNG_S may end when it goes on.) A loop that is held up
again and again is a part of its own (lag.py).
"""

import asyncio
import ctypes
import faulthandler
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from msgspec import Struct

from agent.clock import Clock
from agent.errors import HoldfastError, NotNow, NotThere
from agent.health.conditions import Conditions
from agent.health.watchdog import policy
from agent.health.watchdog.budgets import BUDGET_S_MAX, Budgets
from agent.health.watchdog.disarmed import Disarmed
from agent.health.watchdog.policy import Reading, Rule, Standing, Step, Verdict
from agent.tasks import Crew

log = logging.getLogger("watchdog")
TICK_S = 2.0
COUNTED_S = 2 * TICK_S
HUNG_S = 26.0  # with a tick before it and the dump after it, less than 30 s
PARTING_S = 10.0
LOOP = "loop"
HANG_S = 3600  # longer than anybody waits
HANG_AFTER_S = 0.5

Remedy = Callable[[str], Awaitable[str]]  # gets why; says what it did. Raises HoldfastError.


class Part(NamedTuple):
    """What has to move. `remedies` are by the names that its rule's steps have.

    `hang` has it stand still for real, for a test of the watchdog (None: there is no way to);
    `trouble` is what people are told while it stands still.
    """

    name: str
    read: Callable[[], Reading]
    rule: Rule
    remedies: Mapping[str, Remedy]
    hang: Callable[[], None] | None = None
    trouble: str = "owes work and makes no progress"


class Event(Struct, frozen=True):
    """A remedy, as it is kept: why, what, and what came of it."""

    part: str
    remedy: str
    cause: str
    outcome: str


class Seen(Struct, frozen=True):
    """A part as people see it; seconds since it moved, and what it waits for if nothing is owed."""

    part: str
    verdict: str
    still_s: float
    done: int
    why: str
    remedies: int


class Feeder(Protocol):
    """Whoever ends this process or this machine when it is not fed."""

    def feed(self) -> None:
        """All is well."""


class Watchdog:
    """An async context manager; `run` keeps it ticking."""

    def __init__(
        self,
        parts: Callable[[], Iterable[Part]],
        feeders: Sequence[Feeder],
        note: Callable[[Event], None],
        conditions: Conditions,
        clock: Clock,
        hung: Path,
        disarmed: Disarmed | None = None,
        budgets: Budgets | None = None,
        why_no_reset: Callable[[], str] = lambda: "",
    ) -> None:
        """`parts` are asked for at each tick, for they come and go; `note` keeps an event.

        `hung` is the file that the stacks of a hung loop are written to. Without `budgets` what was
        tried is forgotten with this process. While `why_no_reset` has a reason, the machine is
        neither rebooted nor reset for a part, nor left to starve so that somebody else does it.
        """
        self._parts = parts
        self._feeders = feeders
        self._note = note
        self._conditions = conditions
        self._clock = clock
        self._hung = hung
        self._crew = Crew()
        self._dump: FileIO | None = None  # once it ticks
        self._hung_s = HUNG_S
        self._standings: dict[str, Standing] = {}
        self._rules: dict[str, Rule] = {}
        # What was tried of parts that are gone, or were here before this start: they may come back.
        self._tried = {} if budgets is None else budgets.before()
        self._under_way = set[str]()  # parts whose remedy is at work
        self._begun = Counter[tuple[str, str]]()  # parts and remedies, since the start
        self._ticked_s = 0.0  # by the clock
        self._budgets = budgets
        self._why_no_reset = why_no_reset
        self._withheld = dict[str, str]()  # parts for which the machine is not reset, and why
        self.disarmed = disarmed or Disarmed(conditions, clock)
        # Of the axis on which only running time counts; it goes on where the one before ended.
        self.now_s = budgets.begun_s if budgets else 0.0
        self.fed = False
        self._armed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        await self._crew.end()
        if self._dump:
            self._dump.close()
            self._hung.unlink(missing_ok=True)

    async def run(self) -> None:
        """Tick, for ever. What ends the process where the loop hangs holds from the first tick on,
        until this is left: the other parts have that long to end."""
        self._dump = self._opened()
        ticking = self._crew.begin(self._tick_on())
        try:
            await self._crew.run()
        finally:
            ticking.cancel()

    async def _tick_on(self) -> None:
        self._ticked_s = self._clock.monotonic()
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Look at all parts, begin what is due, feed if all is well."""
        at_s = self._clock.monotonic()
        self.now_s += min(max(at_s - self._ticked_s, 0.0), COUNTED_S)
        self._ticked_s = at_s
        self._arm()
        parts = {part.name: part for part in self._parts()}
        for gone in self._standings.keys() - parts.keys():
            if taken := self._standings.pop(gone).taken:
                self._tried[gone] = taken
            del self._rules[gone], self._withheld[gone]
            self._conditions.clear("part_stands_still", gone)
        self._armed = self.disarmed.left_s is None
        well = [self._look(part) for part in parts.values()]
        self.fed = all(well)
        if self._budgets and self._budgets.due(self.now_s):
            self._keep()
        if self.fed:
            for feeder in self._feeders:
                feeder.feed()

    def seen(self) -> list[Seen]:
        """All parts as they are now."""
        return [
            Seen(
                part=name,
                verdict=policy.verdict(self._rules[name], one, self.now_s).value,
                still_s=round(self.now_s - one.moved_s, 1),
                done=one.done,
                why=one.why,
                remedies=len(one.taken),
            )
            for name, one in self._standings.items()
        ]

    def begun(self) -> dict[tuple[str, str], int]:
        """How often each remedy of each part was begun since the start."""
        rules = self._rules.items()
        known = {(part, step.remedy): 0 for part, rule in rules for step in rule.steps}
        return known | self._begun

    def hang(self, name: str) -> None:
        """Have a part stand still for real: what comes of it is what would come of a fault.

        Raises NotThere, NotNow.
        """
        hangs = {part.name: part.hang for part in self._parts() if part.hang}
        hangs[LOOP] = _hang_here
        if name not in hangs:
            known = ", ".join(sorted(hangs))
            raise NotThere(f"{name!r} is no part that can be hung", f"known: {known}")
        if not self.fed:
            raise NotNow("something stands still already", "holdfast watchdog status")
        log.warning("a test of the watchdog: %s is hung on purpose", name)
        self._note(Event(name, "test", "somebody asked for it", "it is hung on purpose"))
        # A moment later: whoever asked is answered before it stands still.
        asyncio.get_running_loop().call_later(HANG_AFTER_S, hangs[name])

    def disarm(self, for_s: float) -> None:
        """Judge and tell, and do nothing, for so long; whoever resets is fed all the same."""
        self.disarmed.disarm(for_s)
        self._note(Event("watchdog", "disarm", "somebody asked for it", f"for {for_s:.0f} s"))

    def arm(self) -> None:
        """Nobody wants it disarmed any more."""
        self.disarmed.arm()
        self._note(Event("watchdog", "arm", "somebody asked for it", "it is armed"))

    def part(self) -> None:
        """The agent is to end because something in it hangs: it has PARTING_S for that."""
        self._hung_s = PARTING_S
        self._arm()

    def _look(self, part: Part) -> bool:
        """Whether all is well with a part, or is being seen to."""
        now_s, rule = self.now_s, part.rule
        before = self._standings.get(part.name)
        standing = policy.seen(before, part.read(), now_s)
        if before is None:
            standing = standing._replace(taken=self._tried.pop(part.name, ()))
        step = None if part.name in self._under_way else policy.due(rule, standing, now_s)
        exhausted = policy.exhausted(rule, standing, now_s)
        withheld = self._why_no_reset() if exhausted or (step and step.resets) else ""
        self._withheld[part.name] = withheld
        begun = step if self._armed and not withheld else None
        if begun:
            standing = policy.took(standing, begun, now_s)
        self._standings[part.name], self._rules[part.name] = standing, rule
        if begun:
            self._begin(part, begun, now_s - standing.moved_s)
        self._tell(part, standing)
        return part.name in self._under_way or bool(withheld) or not (exhausted and self._armed)

    def _begin(self, part: Part, step: Step, still_s: float) -> None:
        why = f"the watchdog saw no progress of {part.name} for {still_s:.0f} s"
        log.warning("%s: %s", why, step.remedy)
        self._under_way.add(part.name)
        self._begun[part.name, step.remedy] += 1
        self._keep()
        self._crew.begin(self._remedy(part, step, why))

    def _keep(self) -> None:
        """What was tried, for the next start."""
        if self._budgets:
            since_s = self.now_s - BUDGET_S_MAX
            tried = self._tried.items()
            self._tried = {name: taken for name, taken in tried if taken[-1].at_s > since_s}
            present = {name: one.taken for name, one in self._standings.items()}
            self._budgets.note(self.now_s, self._tried | present)

    async def _remedy(self, part: Part, step: Step, why: str) -> None:
        try:
            async with asyncio.timeout(step.time_s):
                outcome = await part.remedies[step.remedy](why)
        except TimeoutError:
            outcome = f"it was not done within {step.time_s:.0f} s"
        except HoldfastError as error:
            outcome = f"it failed: {error}"
            if standing := self._standings.get(part.name):
                self._standings[part.name] = policy.failed(standing)
        finally:
            self._under_way.discard(part.name)
        log.warning("%s: %s: %s", part.name, step.remedy, outcome)
        self._note(Event(part.name, step.remedy, why, outcome))

    def _tell(self, part: Part, standing: Standing) -> None:
        """What people are told of it."""
        verdict = policy.verdict(part.rule, standing, self.now_s)
        if verdict is Verdict.FINE:
            self._conditions.clear("part_stands_still", part.name)
            return
        taken = [one.remedy for one in standing.taken]
        tried = f"; tried: {', '.join(taken)}" if taken else ""
        if why := self._withheld[part.name]:
            tried += f"; this machine is not reset for it: {why}"
        mostly = 2 * policy.own_still_s(standing, self.now_s) < self.now_s - standing.moved_s
        waits = ": it waits for a processor, which others have" if mostly else ""
        cause = {
            Verdict.LATE: f"{part.name} {part.trouble}{waits}",
            Verdict.DEAD: f"{part.name} {part.trouble}, for too long{tried}",
            Verdict.FLAPPING: f"{part.name} moves, but stood still again and again{tried}",
        }[verdict]
        self._conditions.hold(
            "part_stands_still",
            part.name,
            "critical" if verdict is Verdict.DEAD else "warning",
            cause,
            "the watchdog sees to it; holdfast watchdog history tells what it did",
        )

    def _opened(self) -> FileIO:
        """Where the stacks go, if they must; it ends without them where that cannot be had.

        Those of the agent before, if it ended itself, are put aside.
        """
        try:
            if self._hung.exists() and self._hung.stat().st_size:
                last = self._hung.replace(self._hung.with_suffix(f".last{self._hung.suffix}"))
                why = "its loop stood still for too long, or its end did"
                self._note(Event("agent", "end", why, f"it ended itself; its stacks are in {last}"))
                log.error("the agent before this one ended itself: %s: %s", why, last)
            return FileIO(self._hung, "w")
        except OSError as error:
            log.warning("a loop that hangs could not be explained: %s", error)
            return FileIO(os.devnull, "w")

    def _arm(self) -> None:
        assert self._dump
        faulthandler.dump_traceback_later(self._hung_s, exit=True, file=self._dump)


def _hang_here() -> None:
    """As a call into C that does not come back, with the interpreter's lock."""
    ctypes.PyDLL(None).sleep(HANG_S)
