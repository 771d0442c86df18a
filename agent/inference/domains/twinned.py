"""A domain whose models go on on the CPU when their accelerator fails, and return when it works.

Its twin on the CPU (sided.py) is made once the domain serves (`preloaded`), or when it is needed.
What sends a model there (a fall):

    out of memory in a call             this model alone; its neighbours stay where they are
    any other fault in a call           all models of the domain: they share the process, which is
                                        ended, for nobody knows what it still computes
    a process that ends of one, or      the same
    hangs (a call, its start)
    a session that was asked for the    this model: it is on the CPU by itself, in its own process
    accelerator, and is on the CPU

What waited for a fallen model, and what its process had, is handed to the twin, and answered there,
or late; `idempotent: false` holds as ever. A call that met a fault, and fails on the CPU too, was
itself to blame: then the accelerator is tried at once.

The way back (ladder.py says when): a probe, which is a process that runs the fallen models on the
accelerator alone, proves them as any candidate (golden cases), and ends. Then the processes that
are to serve prove them once more, and only then take calls. The probe needs room on the accelerator
for one more copy of the models.

Recovery: none is needed over a restart: the domain begins on its accelerator, or falls again.
"""

import asyncio
import logging
from collections.abc import Container, Iterable, Mapping

from msgspec.structs import replace

from agent.config import Domain as Settings
from agent.config import Instances
from agent.errors import CallLost, HoldfastError, ModelError, RunError
from agent.faults import Class, Classify, class_of
from agent.inference.catalog import Model
from agent.inference.domains.candidate import Candidate, Refused
from agent.inference.domains.climb import Climb
from agent.inference.domains.dispatch import TRIES_MAX
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.instance import Instance
from agent.inference.domains.pool import Pool
from agent.inference.domains.sided import CPU, Sided
from agent.inference.domains.work import Result, Work
from agent.tasks import through

log = logging.getLogger("domain")
OVERDUE = ("(call_timeout_s)", "(start_timeout_s)")  # why a process that hung was ended
OUT_OF_MEMORY: Class = "out_of_memory"  # it is a single model's, and spares its process
HANG: Class = "hang"
EP_MISSING: Class = "ep_missing"
CAUSE_CHARS = 200  # in the log; all of it is in the condition
# Of its settings: where one is another, the falls are of the past.
HELD = ("devices", "cpu_twin_when", "gpu_memory_bytes_max")


class Twinned(Sided):
    """A Domain; without an accelerator among its `devices`, just that."""

    def __init__(
        self, name: str, settings: Settings, parts: Parts, classify: Classify = class_of
    ) -> None:
        """`classify` names the class of an accelerator's fault, from a text, or None."""
        super().__init__(name, settings, parts)
        self._classify = classify
        self._dispatch.faults = self
        self._climb = Climb(self, self.ladder, self._clock)

    async def run(self) -> None:
        """Start, tend what runs, and climb back, for ever."""
        self._crew.begin(self._climb.run())
        await super().run()

    def restart(self) -> None:
        """Kill all instances that serve; others take their place. What fell is probed now."""
        super().restart()
        self.ladder.hurry(self._clock.monotonic())
        self._climb.wake()

    async def change(self, settings: Settings, models: Mapping[str, Model], threads: int) -> None:
        """As Domain's; where other devices are asked for, these are tried, whatever fell before.

        The twin answers until they have proved themselves.
        """
        await super().change(settings, models, threads)
        anew, self.ladder.settings = self._anew, settings
        if anew:
            self._pardon()
        await self._follow()

    @property
    def _anew(self) -> bool:
        """Whether other devices are tried than those that what fell fell from."""
        now, then = self.settings, self.ladder.settings
        return any(getattr(now, key) != getattr(then, key) for key in HELD)

    def fell(self, fault: str, cause: str) -> None:
        """Somebody saw its accelerator fail: all its models go on on the CPU."""
        self._fall(self.models, fault, cause)

    def failed(self, instance: Instance, work: Work, message: str) -> bool:
        """A call failed; whether it is made again, because it was the accelerator's fault."""
        loaded = instance.loaded[work.model]
        fault = self._classify(message) if work.id and loaded.ep != CPU else None
        if fault is None:
            return False
        if fault == OUT_OF_MEMORY:
            self._fall([work.model], fault, message)
        else:
            self._fall(self.models, fault, message)
            instance.kill(f"its accelerator failed: {message}")
        work.tries += 1
        work.alone = True  # it may be of its own doing
        if work.once:
            return False
        if self.elsewhere(work):
            return True
        if fault == OUT_OF_MEMORY or work.tries >= TRIES_MAX:
            return False
        self.adopt(work)
        return True

    def ended(self, instance: Instance, cause: str) -> None:
        """An instance ended: perhaps of its accelerator."""
        on_cpu = instance.loaded and all(one.ep == CPU for one in instance.loaded.values())
        if instance not in self._pools.started or on_cpu:
            return
        if fault := self._fault(cause):
            self._fall(self.models, fault, cause)

    def elsewhere(self, work: Work) -> bool:
        """A call is to be made again; whether the twin has it."""
        found = super().elsewhere(work)
        if found and work.tries:
            work.done.add_done_callback(self._judged)
        return found

    def _judged(self, done: asyncio.Future[Result]) -> None:
        """A call that met a fault came to its end: if it failed on the CPU too, it is to blame."""
        if not done.cancelled() and isinstance(done.exception(), (RunError, CallLost)):
            self.ladder.hurry(self._clock.monotonic())
            self._climb.wake()

    def _fault(self, cause: str) -> str | None:
        return self._classify(cause) or (HANG if any(one in cause for one in OVERDUE) else None)

    @property
    def _laddered(self) -> bool:
        """Whether its models may go to a twin. Speech has no other device than the CPU."""
        engines = {model.manifest.engine for model in self.models.values()}
        return self.settings.cpu_twin_when != "off" and engines == {"onnx"}

    def _fall(self, models: Iterable[str], fault: str, cause: str) -> None:
        """These cannot go on where they are."""
        if not self._laddered or self._dispatch.closed:
            return
        now_s = self._clock.monotonic()
        fell = [one for one in models if self.ladder.fell(one, fault, cause, now_s, self._row(one))]
        if not fell:
            return
        names = ", ".join(fell)
        said = cause[:CAUSE_CHARS]
        log.warning("domain %s: %s: %s goes on on the CPU: %s", self.name, fault, names, said)
        if self._idle_above():
            self._pools.drop()
            self._dispatch.seat.leave()
        self._hand_down()
        self._climb.wake()
        self._tell()

    def _idle_above(self) -> bool:
        """Whether its own processes have nothing left to do."""
        own = self._pools.ready
        here = any(one.loaded[name].ep == CPU for one in own for name in self.models)
        return not here and all(name in self.ladder.falls for name in self.models)

    def _began_below(self, models: Mapping[str, Model], error: HoldfastError) -> bool:
        """Whether the twin serves these models: it is their accelerator that kept them from it."""
        fault = self._fault(str(error))
        if not fault or not models:
            return False
        self.models = dict(models)
        if self._laddered:
            self._fall(models, fault, str(error))
        else:
            self.models = {}
        return self._begun

    @property
    def _begun(self) -> bool:
        return super()._begun or bool(self.falls)

    def _look(self, pool: Pool) -> None:
        if pool is self._pools.current and not self._dispatch.closed and self._laddered:
            self._look_at_devices(pool)
        super()._look(pool)

    def _look_at_devices(self, pool: Pool) -> None:
        """Whether its processes are where they should be; and have a twin stand by for them."""
        for name in self.models:
            for loaded in (one.loaded[name] for one in pool.ready):
                if loaded.ep == CPU:
                    fault = self._classify(loaded.fallback) or EP_MISSING
                    self._fall([name], fault, loaded.fallback)
        works = any(one.ep != CPU for i in pool.ready for one in i.loaded.values())
        if self.settings.cpu_twin_when == "preloaded" and works:
            self._twins.needed()

    def _row(self, model: str) -> float | None:
        """What a row took on the accelerator; None: nobody knows."""
        on_cpu = any(one.loaded[model].ep == CPU for one in self._pools.ready)
        return None if on_cpu else self.row_s(model)

    def _fresh(self, models: Mapping[str, Model]) -> dict[str, Model]:
        found = super()._fresh(models)
        if self._anew and self.settings.devices[0] != "cpu":
            found |= {name: models[name] for name in self.falls if name in models}
        return found

    async def _replace(self, models: Mapping[str, Model]) -> None:
        if self.twin and self._all_below and not self._anew:  # there is nowhere to prove them
            await self.twin.replace(models)
            self.previous, self.models = self.models, dict(models)
            fall = next(iter(self.falls.values()))
            self.ladder.keep(models)
            self._fall(models, fall.fault, fall.cause)
            self._tell()
            return
        await super()._replace(models)
        self.ladder.keep(models)
        self._crew.begin(self._follow())

    async def try_out(self, names: list[str]) -> None:
        """Run these on the accelerator, in a process that is thrown away. Raises ModelError."""
        async with self._turn:  # what is changed meanwhile may need the accelerator's room
            models = {n: self.models[n] for n in names if n in self.falls and n in self.models}
        if not models:  # they were unloaded, or are back
            return
        setup = self._setup(models)
        setup = replace(setup, devices=[one for one in setup.devices if one != "cpu"])
        pool = await self._proved_pool(models, models, Instances(), whole=False, setup=setup)
        await through(self._pools.discard(pool))

    async def take_back(self, names: list[str]) -> None:
        """Serve these on the accelerator again, once they are proved there.

        Raises ModelError: then all is as before.
        """
        async with self._turn:
            names = [name for name in names if name in self.falls and name in self.models]
            if not names:  # they were unloaded meanwhile
                return
            pool = await self._admitted(names)
            for name in names:
                if not self._below(name):  # what was measured lately is the CPU's
                    self._dispatch.batches.costs.pop(name, None)
            self.ladder.returned(names, self._clock.monotonic())
            log.info("domain %s: %s is on its accelerator again", self.name, ", ".join(names))
            if pool is not self._pools.current:
                self._dispatch.apply(self.settings, self._kind(self.models))
                self._restarts.pardon()
                self._resize(pool)
                self._pools.switch(pool, 0.0)
            if twin := self.twin:
                self._recall(twin, names)
                keep_s = self.settings.keep_previous_s
                asyncio.get_running_loop().call_later(keep_s, self._spare, twin)
            self._look(pool)

    def climbed(self, names: list[str]) -> None:
        """A probe of these, or their return, went well or failed."""
        self._parts.changed(self)

    async def _admitted(self, names: list[str]) -> Pool:
        """Processes that have these on the accelerator, proved. Raises ModelError."""
        fresh = {name: self.models[name] for name in names}
        pool = self._pools.current
        if pool and pool.ready and not _on_cpu_instead(pool, names):  # its neighbours never fell
            await Candidate(pool, fresh, self._parts.prove).judge()
            if pool is self._pools.current:
                return pool
            raise ModelError(f"domain {self.name}: its processes went while they were asked")
        pool = await self._proved_pool(self.models, fresh, self.settings.instances, whole=True)
        if why := _on_cpu_instead(pool, names):
            await through(self._pools.discard(pool))
            raise Refused(why, "", [model.label for model in fresh.values()], surely=False)
        return pool

    def _pardon(self) -> None:
        """What fell did so elsewhere: its own processes have it now."""
        self.ladder.falls = {}
        if twin := self.twin:
            self._recall(twin, self.models)
            self._spare(twin)
        if pool := self._pools.current:
            self._look(pool)

    def _recall(self, twin: Domain, names: Container[str]) -> None:
        """These are here again, and so is what waits for them."""
        for work in twin.leave(names):
            self.adopt(work)

    def _spare(self, twin: Domain) -> None:
        """It has stood by for long enough."""
        needed = self.falls or self.settings.cpu_twin_when == "preloaded"
        if not needed and not self._dispatch.closed:
            self._twins.let_go(twin)


def _on_cpu_instead(pool: Pool, names: Iterable[str]) -> str:
    """Why a process of the pool has one of these on the CPU; empty: none has."""
    for loaded in (one.loaded[name] for one in pool.ready for name in names):
        if loaded.ep == CPU:
            return loaded.fallback or "it is on the CPU"
    return ""
