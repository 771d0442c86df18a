"""What has to move, and what is done where it does not. One more part is one more line in `_parts`.

What each rule waits for is longer than what the part itself allows: a domain ends a call that takes
too long, the link a connection that is silent, and only where they do not is it for the watchdog.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from agent.audio.listener import Listener
from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.starts import starts
from agent.errors import HoldfastError, StoreError
from agent.health.checks.bounds import own_bytes, own_bytes_max
from agent.health.starts.causes import Cause
from agent.health.watchdog.budgets import BUDGET_S_MAX, Budgets
from agent.health.watchdog.chronicle import Chronicle
from agent.health.watchdog.device_seen import DeviceSeen
from agent.health.watchdog.disarmed import Disarmed
from agent.health.watchdog.hardware import Hardware
from agent.health.watchdog.lag import LATE_S as LAG_S
from agent.health.watchdog.lag import WINDOW_S, Lag
from agent.health.watchdog.policy import Reading, Rule, Step
from agent.health.watchdog.watchdog import HANG_S, LOOP, TICK_S, Event, Part, Remedy, Watchdog
from agent.host.resets.resets import Resets
from agent.host.root.client import Root
from agent.host.root.forms import Reboot, Reset
from agent.host.systemd import Systemd
from agent.host.wdt import HardwareWatchdog
from agent.inference.domains.domain import Domain
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store

STREAM = "watchdog"
LATE_S, DEAD_S = 10.0, 24.0  # with a tick of 2 s, the first remedy comes within 30 s
BEYOND_S = 4.0  # how much longer than a part's own bound
KEPT_S = 2.0  # for a disk that writes at all
INSTANCE = Step("instance", 3, 600.0, None)
DOMAIN = Step("domain", 2, 1800.0, None)
PART = Step("part", 2, 1800.0, 20.0)
AGENT = Step("agent", 2, 3600.0, 30.0)
# In 120 s systemd ends all units, or kills them; what hangs then, RebootWatchdogSec sees to.
REBOOT = Step("reboot", 1, 6 * 3600.0, 120.0, 30.0, resets=True)
RESET = Step("reset", 2, 24 * 3600.0, 30.0, resets=True)
LAGS = TICK_S, 2 * TICK_S  # what is late was added up already (lag.py)
LATE = f"was held up for {LAG_S:.0f} s of the last {WINDOW_S:.0f}, or more"
LOOK_S = 600.0  # whether the root daemon is there


class Turns:
    """Whether the store's thread comes round: it is asked for nothing, again and again.

    A commit that ends is a step as well: on a slow disk many may be before what was asked. So is a
    slice of a file that is written back.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._done = 0
        self._asked: asyncio.Task[None] | None = None
        self._unanswered = 0  # readings in a row

    @property
    def stands(self) -> bool:
        """Whether it has kept whoever asks waiting from one reading to the next."""
        return self._unanswered > 1

    def read(self) -> Reading:
        """To be called in the loop."""
        self._unanswered += 1
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_task(self._ask())
            self._unanswered = 0
        return Reading(self._done + self._store.steps, owed=True)

    def hang(self) -> None:
        """Have the thread stand still."""
        self._hung = asyncio.get_running_loop().create_task(self._store.hang(HANG_S))

    async def _ask(self) -> None:
        with suppress(StoreError):  # it answers
            await self._store.turn()
        self._done += 1


class WatchdogParts:
    """The watchdog, its parts, whom it feeds, and what it writes down."""

    def __init__(
        self,
        core: Core,
        inference: InferenceParts,
        link: LinkParts,
        restart: Callable[[str], None],
    ) -> None:
        """`restart` ends the agent, so that it is started again, and says why."""
        self._inference = inference
        self._link = link
        self._restart = restart
        self._core = core
        self._turns = Turns(core.store)
        settings = core.settings.watchdog
        self.root = Root(Path(settings.root_socket) if settings.root_socket else None)
        self.resets = Resets(settings, self.root)
        reset = replace(RESET, time_s=self.resets.time_s_max + KEPT_S)
        self._last_steps = (AGENT, REBOOT, reset)
        self.lag = Lag(core.clock, TICK_S)
        self.systemd = Systemd()
        self.disarmed = Disarmed(core.conditions, core.clock)
        self.hardware = self._hardware()
        self.device = DeviceSeen(
            *(settings.owner, settings.device),
            HardwareWatchdog(Path(settings.device)).found,
            core.conditions,
            installed=self.systemd.there,
        )
        self.budgets = Budgets(core.beside("ladder.json"), core.clock)
        self.chronicle = Chronicle(core.beside("watchdog.json"), self._append, core.clock)
        self.starts = starts(core, inference.hold, self.chronicle.note)
        self.watchdog = Watchdog(
            lambda: [*self._parts()],
            [self.systemd, *([self.hardware] if self.hardware else ())],
            self.chronicle.note,
            core.conditions,
            core.clock,
            core.beside("hung.txt"),
            self.disarmed,
            self.budgets,
            self.starts.why_no_reset,
        )

    def _hardware(self) -> Hardware | None:
        settings, core = self._core.settings.watchdog, self._core
        if settings.owner != "agent":
            return None
        device = HardwareWatchdog(Path(settings.device))
        parts = (settings.timeout_s, core.conditions, core.clock)
        return Hardware(device, settings.device, *parts, self.disarmed)

    def close(self) -> None:
        """The agent has ended in order, because it was told to."""
        if self.hardware:
            self.hardware.close()

    async def _append(self, bodies: Sequence[bytes]) -> None:
        new = [New(RecordType.WATCHDOG, body) for body in bodies]
        await self._core.store.intake.append(STREAM, new)

    async def tell(self) -> None:
        """Tell systemd what holds, for `systemctl status`, at each change, for ever."""
        conditions = self._core.conditions
        while True:
            number = conditions.changes.number
            held = ", ".join(f"{one.name} {one.subject}" for one in conditions.all())
            self.systemd.status(f"{conditions.status()}{': ' if held else ''}{held}")
            await conditions.changes.after(number)

    async def look(self) -> None:
        """See that the root daemon is there before it is needed, for ever."""
        where = self._core.settings.watchdog.root_socket
        assert where, "else there is nothing to look for"
        while True:
            try:
                await self.root.ask(Reset(dry_run=True))
            except HoldfastError as error:
                why = f"this agent could neither reboot nor reset this machine: {error}"
                self._core.conditions.hold("root_unready", where, "warning", why, error.hint)
            else:
                self._core.conditions.clear("root_unready", where)
            await asyncio.sleep(LOOK_S)

    def _parts(self) -> Iterator[Part]:
        rule, remedies = Rule(LATE_S, DEAD_S, self._last_steps), self._last_remedies("store")
        yield Part("store", self._turns.read, rule, remedies, self._turns.hang)
        yield self._memory()
        rule = Rule(*LAGS, (AGENT,), spared=True)
        yield Part(LOOP, self.lag.read, rule, {"agent": self._end}, trouble=LATE)
        for domain in self._inference.domains.all():
            yield self._domain(domain)
        for listener in (*self._inference.ears.listeners, *self._inference.ears.guests):
            yield self._hearing(listener)
        yield self._uplink()

    def _memory(self) -> Part:
        """No reboot gives it more than a new process does."""
        most = own_bytes_max(self._core.settings.models)
        bound = f"is above {most >> 20} MiB in the agent's own process, and stays there"
        rule = Rule(LATE_S, DEAD_S, (AGENT,), spared=True)
        remedies: dict[str, Remedy] = {"agent": self._end}
        return Part("memory", partial(memory, most), rule, remedies, trouble=bound)

    def _domain(self, domain: Domain) -> Part:
        name = f"domain {domain.name}"
        rule = _rule(domain.settings.call_timeout_s, INSTANCE, DOMAIN, *self._last_steps)
        remedies: dict[str, Remedy] = {
            "instance": partial(_kill, domain),
            "domain": partial(begin_anew, domain),
            **self._last_remedies(name),
        }
        return Part(name, partial(_calls, domain), rule, remedies, domain.hang)

    def _hearing(self, listener: Listener) -> Part:
        domain = self._inference.domains.named(self._core.settings.audio.domain)

        def read() -> Reading:
            why = _excuse(domain)
            if self._turns.stands:  # what is heard is kept there
                why = "the store stands still"
            elif not listener.hears:
                why = why or "nothing waits to be heard"
            return Reading(listener.heard_rows, not why, why, domain.held_up_s())

        name = f"source {listener.source}"
        rule = _rule(domain.settings.call_timeout_s, PART, DOMAIN, *self._last_steps)
        remedies: dict[str, Remedy] = {
            "part": listener.restart,
            "domain": partial(begin_anew, domain),
            **self._last_remedies(name),
        }
        return Part(name, read, rule, remedies, partial(listener.hang, HANG_S))

    def _uplink(self) -> Part:
        link = self._link.link

        def read() -> Reading:
            if link.rests or not link.steps:
                return Reading(link.steps, owed=False, why="it waits before it tries")
            if self._turns.stands:  # what is sent is kept there
                return Reading(link.steps, owed=False, why="the store stands still")
            return Reading(link.steps, owed=True)

        # A bad network is no fault of this machine's: it is not reset for what looks like one.
        rule = replace(_rule(link.step_s_max, PART, AGENT), spared=True)
        remedies: dict[str, Remedy] = {"part": link.restart, "agent": self._end}
        return Part("uplink", read, rule, remedies, partial(link.hang, HANG_S))

    def _last_remedies(self, part: str) -> dict[str, Remedy]:
        """What is left once nothing within the agent helps."""
        return {
            "agent": self._end,
            "reboot": partial(self._reboot, part),
            "reset": partial(self._reset, part),
        }

    async def _reboot(self, part: str, why: str) -> str:
        await self._marked(Event(part, "reboot", why, "it begins"))
        return await self.root.ask(Reboot())

    async def _reset(self, part: str, why: str) -> str:
        await self._marked(Event(part, "reset", why, "it begins"))
        return await self.resets.reset(why)

    async def _marked(self, event: Event) -> None:
        """It stands written down before it is done: there may be no later.

        Raises HoldfastError where it does not: nobody resets what he cannot count.
        """
        self.chronicle.note(event)
        await self.starts.mark(Cause.WATCHDOG, event.cause)
        if why := self.starts.why_no_reset():
            raise HoldfastError(
                f"this machine is not reset: {why}", "holdfast watchdog status, and the conditions"
            )
        await self._all_kept()

    async def _end(self, why: str) -> str:
        self._ending = asyncio.get_running_loop().create_task(self._part(why))
        return "the agent ends, to be started again"

    async def _part(self, why: str) -> None:
        """Once it stands written down why: the end itself may hang."""
        await self._all_kept()
        self._restart(why)
        self.watchdog.part()

    async def _all_kept(self) -> None:
        with suppress(TimeoutError):  # a disk that hangs keeps nobody from it
            async with asyncio.timeout(KEPT_S):
                await self.chronicle.file.kept()
                await self.budgets.file.kept()


def _rule(bound_s: float, *steps: Step) -> Rule:
    """For a part that itself sees to what takes longer than `bound_s`.

    Where it is dead later than others, its tries count for as much longer: else they would be
    forgotten before the next step is due.
    """
    dead_s = max(DEAD_S, bound_s + BEYOND_S)
    longer = dead_s / DEAD_S
    counted = [replace(one, within_s=min(one.within_s * longer, BUDGET_S_MAX)) for one in steps]
    return Rule(max(LATE_S, bound_s), dead_s, tuple(counted))


def memory(bound_bytes: int) -> Reading:
    """Whether this process is below its bound: what leaks comes back with a new process alone."""
    try:
        own = own_bytes()
    except OSError as error:  # no descriptor is left: for others to meet
        return Reading(0, owed=False, why=f"nobody knows: {error.strerror}")
    return Reading(0, owed=own > bound_bytes, why="it is below its bound")


def _excuse(domain: Domain) -> str:
    """Why no step can be expected of a domain now; empty: it can."""
    if not domain.ready.is_set():
        return domain.cause or "its process has ended"
    return "another domain has the GPU" if domain.waiting and not domain.owes else ""


def _calls(domain: Domain) -> Reading:
    why = _excuse(domain) or ("" if domain.owes else "no call waits")
    return Reading(domain.figures.done, not why, why, domain.held_up_s())


async def _kill(domain: Domain, why: str) -> str:
    return f"{domain.kill_busy(why)} processes killed, their calls are made again"


async def begin_anew(domain: Domain, why: str) -> str:
    """Kill all processes of a domain, whose models go on on the CPU where they had another device
    until now. What was done, in words."""
    domain.restart()
    domain.fell("hang", why)
    if domain.falls:
        return f"all processes of the domain killed, {', '.join(domain.falls)} on the CPU meanwhile"
    return "all processes of the domain killed, others take their place"
