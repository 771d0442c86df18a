"""The smart check: everything is asked, and models really run.

Limits  : one at a time, over within DEADLINE_S whatever hangs; all get its answer for KEEP_S.
"""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.checks import bounds
from agent.health.checks.check import WORDS, Check, Verdict, Word, gravest
from agent.health.checks.inference import Probe
from agent.health.conditions import Condition, Conditions
from agent.inference.domains.domain import Domain
from agent.words import counted

DEADLINE_S = 5.0  # less than what who asks is used to wait
KEEP_S = 5.0


class Checkup(Struct, frozen=True):
    """What was found; `age_s` ago."""

    status: Word
    took_ms: float
    age_s: float
    checks: list[Check]
    conditions: list[Condition]


class Smart:
    """Asks the parts."""

    def __init__(
        self,
        domains: Callable[[], list[Domain]],
        takes_records: Callable[[], Awaitable[None]],
        conditions: Conditions,
        clock: Clock,
        own_bytes_max: int = bounds.AGENT_BYTES_MAX,
    ) -> None:
        """`domains` are those that the configuration wants; `takes_records` raises StoreError."""
        self._domains = domains
        self._takes_records = takes_records
        self._conditions = conditions
        self._clock = clock
        self._own_bytes_max = own_bytes_max
        self._probe = Probe(clock)
        self._running: asyncio.Task[None] | None = None
        self._ended_s = -KEEP_S
        self._took_s = 0.0
        self._checks: list[Check] = []

    async def now(self) -> Checkup:
        """The answer of the check that runs, or that ended last, or of a new one."""
        if self._running or self._clock.monotonic() - self._ended_s > KEEP_S or not self._checks:
            if self._running is None:
                self._running = asyncio.create_task(self._run())
            await asyncio.shield(self._running)
        held = self._conditions.all()
        words = [WORDS[one.verdict] for one in self._checks]
        return Checkup(
            gravest([self._conditions.status(), *words]),
            round(self._took_s * 1000, 3),
            round(self._clock.monotonic() - self._ended_s, 3),
            self._checks,
            held,
        )

    async def _run(self) -> None:
        began_s = self._clock.monotonic()
        until_s = began_s + DEADLINE_S
        try:
            parts = [self._store(until_s), *(self._domain(one, until_s) for one in self._domains())]
            found = await asyncio.gather(*parts)
            self._checks = [
                bounds.own_memory(self._own_bytes_max),
                *(check for part in found for check in part),
            ]
            self._ended_s = self._clock.monotonic()
            self._took_s = self._ended_s - began_s
        finally:
            self._running = None

    async def _store(self, until_s: float) -> list[Check]:
        began_s, remedy = self._clock.monotonic(), ""
        try:
            async with asyncio.timeout(until_s - began_s):
                await self._takes_records()
            found = "it takes records"
        except HoldfastError as error:
            found, remedy = str(error), error.hint
        except OSError as error:
            found, remedy = str(error), "check the disk of the store"
            if isinstance(error, TimeoutError):
                found = "it does not answer in time"
        took_ms = round((self._clock.monotonic() - began_s) * 1000, 3)
        verdict: Verdict = "fail" if remedy else "pass"
        return [Check("store", "store", verdict, found, "it takes records", took_ms, remedy)]

    async def _domain(self, domain: Domain, until_s: float) -> list[Check]:
        found = [_reachable(domain), *_loaded(domain)]
        if not domain.ready.is_set():
            return found
        found.append(await self._probe.ask(domain, until_s))
        if ran := self._probe.ran(domain):
            found.append(bounds.compute(domain.name, ran, self._clock))
        return [*found, bounds.queue(domain, self._clock), bounds.memory(domain)]


def _reachable(domain: Domain) -> Check:
    ready, serving = domain.ready.is_set(), domain.processes["serving"]
    return Check(
        "reachable",
        domain.name,
        "pass" if ready else "fail",
        f"{counted(serving, 'process gets', 'processes get')} calls"
        if ready
        else f"down: {domain.cause}",
        "a process that gets calls",
        remedy="" if ready else domain.hint or f"holdfast domains restart {domain.name}",
    )


def _loaded(domain: Domain) -> list[Check]:
    """Each model that the configuration wants in it."""
    found = []
    for name in domain.settings.models:
        loaded = domain.loaded(name)
        model = domain.models.get(name) if loaded else None
        found.append(
            Check(
                "loaded",
                f"{domain.name}/{name}",
                "pass" if model else "warn" if domain.ready.is_set() else "fail",
                f"{model.label} on {loaded.ep}" if model and loaded else "it is not loaded",
                "it is loaded",
                remedy="" if model else f"holdfast models load {name}",
            )
        )
    return found
