"""What has to move, and what is done where it does not. One more part is one more line in `all`.

What each rule waits for is longer than what the part itself allows: a domain ends a call that takes
too long, the link a connection that is silent, and only where they do not is it for the watchdog.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from agent.audio.listener import Listener
from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.errors import StoreError
from agent.health.checks.bounds import own_bytes, own_bytes_max
from agent.health.watchdog.budgets import BUDGET_S_MAX
from agent.health.watchdog.lag import LATE_S as LAG_S
from agent.health.watchdog.lag import WINDOW_S, Lag
from agent.health.watchdog.policy import Reading, Rule, Step
from agent.health.watchdog.watchdog import HANG_S, LOOP, TICK_S, Part, Remedy
from agent.inference.domains.domain import Domain
from agent.store.store import Store

LATE_S, DEAD_S = 10.0, 24.0  # with a tick of 2 s, the first remedy comes within 30 s
BEYOND_S = 4.0  # how much longer than a part's own bound
INSTANCE = Step("instance", 3, 600.0, None)
DOMAIN = Step("domain", 2, 1800.0, None)
PART = Step("part", 2, 1800.0, 20.0)
AGENT = Step("agent", 2, 3600.0, 30.0)
# In 120 s systemd ends all units, or kills them; what hangs then, RebootWatchdogSec sees to.
REBOOT = Step("reboot", 1, 6 * 3600.0, 120.0, 30.0, resets=True)
RESET = Step("reset", 2, 24 * 3600.0, 30.0, resets=True)
LAGS = TICK_S, 2 * TICK_S  # what is late was added up already (lag.py)
LATE = f"was held up for {LAG_S:.0f} s of the last {WINDOW_S:.0f}, or more"


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


class Last(NamedTuple):
    """What is left once nothing within the agent helps: the steps, and what they do for a part."""

    steps: tuple[Step, ...]
    remedies: Callable[[str], dict[str, Remedy]]
    end: Remedy  # of the agent, to be started again


class MovingParts:
    """All parts of this agent that have to move."""

    def __init__(
        self, core: Core, inference: InferenceParts, link: LinkParts, lag: Lag, last: Last
    ) -> None:
        self._models = core.settings.models
        self._audio = core.settings.audio
        self._inference = inference
        self._link = link
        self._lag = lag
        self._last = last
        self._turns = Turns(core.store)

    def all(self) -> Iterator[Part]:
        """As they are now: domains and sources come and go."""
        rule, remedies = Rule(LATE_S, DEAD_S, self._last.steps), self._last.remedies("store")
        yield Part("store", self._turns.read, rule, remedies, self._turns.hang)
        yield self._memory()
        rule = Rule(*LAGS, (AGENT,), spared=True)
        yield Part(LOOP, self._lag.read, rule, {"agent": self._last.end}, trouble=LATE)
        for domain in self._inference.domains.all():
            yield self._domain(domain)
        for listener in (*self._inference.ears.listeners, *self._inference.ears.guests):
            yield self._hearing(listener)
        yield self._uplink()

    def _memory(self) -> Part:
        """No reboot gives it more than a new process does."""
        most = own_bytes_max(self._models)
        bound = f"is above {most >> 20} MiB in the agent's own process, and stays there"
        rule = Rule(LATE_S, DEAD_S, (AGENT,), spared=True)
        remedies: dict[str, Remedy] = {"agent": self._last.end}
        return Part("memory", partial(memory, most), rule, remedies, trouble=bound)

    def _domain(self, domain: Domain) -> Part:
        name = f"domain {domain.name}"
        rule = rule_of(domain.settings.call_timeout_s, INSTANCE, DOMAIN, *self._last.steps)
        remedies: dict[str, Remedy] = {
            "instance": partial(_kill, domain),
            "domain": partial(begin_anew, domain),
            **self._last.remedies(name),
        }
        return Part(name, partial(calls, domain), rule, remedies, domain.hang)

    def _hearing(self, listener: Listener) -> Part:
        domain = self._inference.domains.named(self._audio.domain)

        def read() -> Reading:
            why = excuse(domain)
            if self._turns.stands:  # what is heard is kept there
                why = "the store stands still"
            elif not listener.hears:
                why = why or "nothing waits to be heard"
            return Reading(listener.heard_rows, not why, why, domain.held_up_s())

        name = f"source {listener.source}"
        rule = rule_of(domain.settings.call_timeout_s, PART, DOMAIN, *self._last.steps)
        remedies: dict[str, Remedy] = {
            "part": listener.restart,
            "domain": partial(begin_anew, domain),
            **self._last.remedies(name),
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
        rule = replace(rule_of(link.step_s_max, PART, AGENT), spared=True)
        remedies: dict[str, Remedy] = {"part": link.restart, "agent": self._last.end}
        return Part("uplink", read, rule, remedies, partial(link.hang, HANG_S))


def rule_of(bound_s: float, *steps: Step) -> Rule:
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


def excuse(domain: Domain) -> str:
    """Why no step can be expected of a domain now; empty: it can."""
    if not domain.ready.is_set():
        return domain.cause or "its process has ended"
    return "another domain has the GPU" if domain.waiting and not domain.owes else ""


def calls(domain: Domain) -> Reading:
    """What a domain says of itself."""
    why = excuse(domain) or ("" if domain.owes else "no call waits")
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
