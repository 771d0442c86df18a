"""What has to move, and what is done where it does not. One more part is one more line in `_parts`.

What each rule waits for is longer than what the part itself allows: a domain ends a call that takes
too long, the link a connection that is silent, and only where they do not is it for the watchdog.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from agent.audio.listener import Listener
from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.errors import StoreError
from agent.health.checks.bounds import AGENT_BYTES_MAX, own_bytes
from agent.health.watchdog.chronicle import Chronicle
from agent.health.watchdog.hardware import Hardware
from agent.health.watchdog.policy import Reading, Rule, Step
from agent.health.watchdog.watchdog import HANG_S, Part, Remedy, Watchdog
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
SILENT = 1.5  # intervals of the keep-alive after which the link ends a connection
INSTANCE = Step("instance", 3, 600.0, 5.0)
DOMAIN = Step("domain", 2, 1800.0, 20.0)
AGENT = Step("agent", 2, 3600.0, 30.0)


class Turns:
    """Whether the store's thread comes round: it is asked for nothing, again and again.

    A commit that ends is a step as well: on a slow disk many may be before what was asked.
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
        return Reading(self._done + self._store.commits.count, owed=True)

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
        self.systemd = Systemd()
        self.hardware = self._hardware()
        self.chronicle = Chronicle(core.beside("watchdog.json"), self._append, core.clock)
        self.watchdog = Watchdog(
            lambda: [*self._parts()],
            [self.systemd, *([self.hardware] if self.hardware else ())],
            self.chronicle.note,
            core.conditions,
            core.clock,
            core.beside("hung.txt"),
        )

    def _hardware(self) -> Hardware | None:
        settings, core = self._core.settings.watchdog, self._core
        if settings.owner != "agent":
            return None
        device = HardwareWatchdog(Path(settings.device))
        parts = (settings.timeout_s, core.conditions, core.clock)
        return Hardware(device, settings.device, *parts)

    def close(self) -> None:
        """The agent has ended in order, because it was told to."""
        if self.hardware:
            self.hardware.close()

    async def _append(self, bodies: Sequence[bytes]) -> None:
        new = [New(RecordType.WATCHDOG, body) for body in bodies]
        await self._core.store.intake.append(STREAM, new)

    def _parts(self) -> Iterator[Part]:
        agent = {"agent": self._end}
        rule = Rule(LATE_S, DEAD_S, (AGENT,))
        yield Part("store", self._turns.read, rule, agent, self._turns.hang)
        bound = f"is above {AGENT_BYTES_MAX >> 20} MiB in the agent's own process, and stays there"
        yield Part("memory", _memory, rule, agent, trouble=bound)
        for domain in self._inference.domains.all():
            yield self._domain(domain)
        for listener in (*self._inference.ears.listeners, *self._inference.ears.guests):
            yield self._hearing(listener)
        yield self._uplink()

    def _domain(self, domain: Domain) -> Part:
        rule = _rule(domain.settings.call_timeout_s, INSTANCE, DOMAIN, AGENT)
        remedies: dict[str, Remedy] = {
            "instance": partial(_kill, domain),
            "domain": partial(_begin_anew, domain),
            "agent": self._end,
        }
        return Part(f"domain {domain.name}", partial(_calls, domain), rule, remedies, domain.hang)

    def _hearing(self, listener: Listener) -> Part:
        domain = self._inference.domains.named(self._core.settings.audio.domain)

        def read() -> Reading:
            if not domain.ready.is_set():
                return Reading(listener.heard_rows, owed=False, why=domain.cause)
            if self._turns.stands:  # what is heard is kept there
                return Reading(listener.heard_rows, owed=False, why="the store stands still")
            why = "" if listener.hears else "nothing waits to be heard"
            return Reading(listener.heard_rows, listener.hears, why)

        rule = _rule(domain.settings.call_timeout_s, DOMAIN, AGENT)
        remedies: dict[str, Remedy] = {
            "domain": partial(_begin_anew, domain),
            "agent": self._end,
        }
        return Part(f"source {listener.source}", read, rule, remedies)

    def _uplink(self) -> Part:
        link, settings = self._link.link, self._core.settings.link

        def read() -> Reading:
            if link.connected_since is not None:  # a bad network is no fault of this agent's
                return Reading(link.turns, owed=False, why="its keep-alive sees to a connection")
            if link.rests or not link.turns:
                return Reading(link.turns, owed=False, why="it waits before it tries")
            return Reading(link.turns, owed=True)

        bound_s = max(SILENT * settings.keepalive_s, settings.connect_timeout_s)
        return Part("uplink", read, _rule(bound_s, AGENT), {"agent": self._end})

    async def _end(self, why: str) -> str:
        self._ending = asyncio.get_running_loop().create_task(self._part(why))
        return "the agent ends, to be started again"

    async def _part(self, why: str) -> None:
        """Once it stands written down why: the end itself may hang."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEPT_S):
                await self.chronicle.kept()
        self._restart(why)
        self.watchdog.part()


def _rule(bound_s: float, *steps: Step) -> Rule:
    """For a part that itself sees to what takes longer than `bound_s`."""
    return Rule(max(LATE_S, bound_s), max(DEAD_S, bound_s + BEYOND_S), steps)


def _memory() -> Reading:
    """What leaks comes back with a new process alone."""
    return Reading(0, owed=own_bytes() > AGENT_BYTES_MAX, why="it is below its bound")


def _calls(domain: Domain) -> Reading:
    if not domain.ready.is_set():
        return Reading(domain.figures.done, owed=False, why=domain.cause)
    return Reading(domain.figures.done, domain.owes, "" if domain.owes else "no call waits")


async def _kill(domain: Domain, why: str) -> str:
    return f"{domain.kill_busy(why)} processes killed, their calls are made again"


async def _begin_anew(domain: Domain, _: str) -> str:
    domain.restart()
    return "all processes of the domain killed, others take their place"
