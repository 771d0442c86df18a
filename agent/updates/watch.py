"""One version on probation, looked at until there is a verdict.

Limits  : only time in which the version serves counts, LOOKED_S_MAX at most between two looks. It
          may be without a process that serves for `start_timeout_s` and MUTE_S_MAX. Its golden
          outputs are waited for GOLDEN_S_MAX beyond the end where its domain is too busy for them.
Recovery: what was seen is in the trial; another process goes on from there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from agent.clock import Clock
from agent.config import Probation as Rules
from agent.errors import BusyError, CallLost, LateError, ModelError, NotThere
from agent.inference.catalog import Model
from agent.inference.domains.candidate import Prove
from agent.inference.domains.domain import Domain
from agent.inference.domains.hold import Hold
from agent.inference.domains.renewed import Renewed
from agent.inference.domains.work import Result, Work
from agent.updates import verdict
from agent.updates.trials import Seen, State, Trial

LOOK_S = 1.0
LOOKED_S_MAX = 10.0  # a machine that slept has not watched
MUTE_S_MAX = 60.0
GOLDEN_S_MAX = 60.0
PASSING = (BusyError, CallLost, LateError, NotThere)  # they say nothing of the outputs


class Parts(NamedTuple):
    """What watches. `prove` has a version show its golden outputs; while `hold` holds, no time
    goes by."""

    domains: Renewed
    prove: Prove
    rules: Rules
    hold: Hold
    clock: Clock
    look_s: float = LOOK_S


class Watch:
    """Looks at the version of a trial that is `watched`."""

    def __init__(self, trial: Trial, parts: Parts) -> None:
        self._domains, self._prove, self._rules, self._hold, self._clock, self._look_s = parts
        self._begun = self._trial = trial  # as it was when this process began, and as it is
        self._began_s = self._looked_s = self._ready_s = self._clock.monotonic()
        self._first: tuple[Seen, int] | None = None  # the domain's counts at the first look

    async def run(self, keep: Callable[[Trial], Awaitable[None]]) -> Trial:
        """Until there is a verdict: the trial with it, `taking_back` where it is not good.

        `keep` is given the trial after each look.
        """
        golden = asyncio.create_task(self._golden())
        try:
            while True:
                self._trial = self._look(golden.result() if golden.done() else None)
                if self._trial.state != "watched":
                    return self._trial
                await keep(self._trial)
                await asyncio.sleep(self._look_s)
        finally:
            golden.cancel()

    def _look(self, golden: str | None) -> Trial:
        """`golden`: what is wrong with the golden outputs; None: nobody knows yet."""
        name, now_s = self._trial.name, self._clock.monotonic()
        gone_s, self._looked_s = min(now_s - self._looked_s, LOOKED_S_MAX), now_s
        domain, serving = self._domains.serving(name), self._domains.version(name)
        if domain is None or (domain.models and serving is None):
            return self._so("overtaken", "it was taken out of service")
        if serving not in (None, self._trial.version):
            if why := self._domains.instead(domain).get(name):
                return self._so("taking_back", f"it could not begin: {why}")
            return self._so("overtaken", f"version {serving} was ordered meanwhile")
        self._trial = self._counted(domain)
        if why := golden or verdict.breach(self._trial, self._rules):
            return self._so("taking_back", why)
        if self._hold.holds or serving is None or not domain.ready.is_set():
            return self._mute(domain, now_s)
        self._ready_s = now_s
        left_s = max(0.0, self._trial.left_s - gone_s)
        self._trial = replace(self._trial, left_s=left_s)
        if left_s > 0 or (golden is None and now_s - self._began_s < GOLDEN_S_MAX):
            return self._trial
        return self._so("passed", "" if golden == "" else "it was too busy for its golden outputs")

    def _so(self, state: State, why: str) -> Trial:
        return replace(self._trial, state=state, why=why)

    def _mute(self, domain: Domain, now_s: float) -> Trial:
        """It is not ready: for how long it may be so."""
        if self._hold.holds:
            self._ready_s = now_s
        most_s = domain.settings.start_timeout_s + MUTE_S_MAX
        if now_s - self._ready_s > most_s:
            why = f"it has not been ready for {most_s:.0f} s: {domain.cause}"
            return self._so("taking_back", why)
        return self._trial

    def _counted(self, domain: Domain) -> Trial:
        """With what this process has seen added to what was known."""
        now, begun = verdict.counted(domain, self._trial.name), self._begun
        if self._first is None:
            self._first = (now, domain.deaths)
        first, deaths = self._first
        p95_ms = self._trial.seen.p95_ms
        if self._trial.name not in domain.falls:  # else its accelerator is to blame
            parts = (domain.figures, self._trial.name, self._began_s, self._rules.calls_min)
            p95_ms = verdict.p95_ms(*parts) or p95_ms
        calls = begun.seen.calls + max(0, now.calls - first.calls)
        failed = begun.seen.failed + max(0, now.failed - first.failed)
        died = begun.deaths + max(0, domain.deaths - deaths)
        return replace(self._trial, seen=Seen(calls, failed, p95_ms), deaths=died)

    async def _golden(self) -> str:
        """What is wrong with its golden outputs, now that it serves; by the way of all calls."""
        name, version = self._trial.name, self._trial.version
        while True:
            domain = self._domains.serving(name)
            model = domain.models.get(name) if domain else None
            loaded = domain.loaded(name) if domain else None
            if domain and model and loaded and model.manifest.version == version:
                # It is not alone any more: what its calls take is judged by all of them.
                timeless = replace(model, manifest=replace(model.manifest, latency_ms_max=None))
                try:
                    await self._prove(timeless, loaded, partial(_asked, domain, model))
                except ModelError as error:
                    if not isinstance(error.__cause__, PASSING):
                        return str(error)
                else:
                    return ""
            await asyncio.sleep(self._look_s)


async def _asked(domain: Domain, model: Model, work: Work) -> Result:
    """The answer of this version, and of no other."""
    work.label = work.key = model.label
    work.gathers = False
    domain.submit(work)
    try:
        return await work.done
    except asyncio.CancelledError:
        domain.cancel(work)
        raise
