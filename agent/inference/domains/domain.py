"""A domain: a queue of calls, and the pool of instances that answers them.

At any time one pool serves. Another set of models comes in processes of their own: they are
started, proved (candidate.py), and then take over between two calls; the former pool finishes what
it has and stands by for `keep_previous_s` (pools.py). To go back to its models is to have it take
over again. The first start is the same thing, with nothing before it.

Limits  : as its settings say; one candidate at a time, one pool that stands by.
Recovery: a dead instance is replaced (pool.py), its calls are made once more (dispatch.py). What
          cannot start at all is tried again as restarts.py says; versions.py says with what.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import NamedTuple, Self

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.config import Instances
from agent.errors import BusyError, HoldfastError
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains import wishes
from agent.inference.domains.batches import Kind
from agent.inference.domains.candidate import Candidate, Refused
from agent.inference.domains.candidate import Prove as Prove
from agent.inference.domains.figures import Figures
from agent.inference.domains.growth import Growth
from agent.inference.domains.instance import Cell, Instance
from agent.inference.domains.lease import Lease
from agent.inference.domains.pool import Pool
from agent.inference.domains.seen import Seen
from agent.inference.domains.work import Class, Work
from agent.inference.domains.zygote import Zygote
from agent.tasks import through

log = logging.getLogger("domain")
TEND_S = 0.1  # between two looks at whether it should grow or shrink
RETRY_S = 1.0  # what a caller is told while it starts


class Parts(NamedTuple):
    """What a domain is made with.

    `choose`, called in a thread, finds the models to begin with, or raises HoldfastError. `refused`
    is told why a start failed before the next one, for which `choose` is asked again.

    `changed` is called when it becomes ready or is lost, or its models change.

    `prove` raises ModelError for a model that must not serve; `zygote` forks processes, `cell` puts
    them under the domain's limits; `threads` are those of each instance; `lease` shares out the
    GPU's time (none: there is no other domain); `figures` count what it does (none: its own).
    """

    choose: Callable[[], dict[str, Model]]
    clock: Clock
    changed: Callable[["Domain"], None]
    prove: Prove
    cell: Cell
    zygote: Zygote
    threads: int
    lease: Lease | None = None
    refused: Callable[[HoldfastError], None] = lambda _: None
    figures: Figures | None = None


class Domain(Seen):
    """The running domain; an async context manager. `run` keeps it alive."""

    def __init__(self, name: str, settings: Settings, parts: Parts) -> None:
        super().__init__(name, settings, parts.clock, parts.figures, parts.lease)
        self.tried = asyncio.Event()  # it has begun, or could not so far
        self.previous: dict[str, Model] = {}  # those that served before
        self.hint = ""  # what may help, where that is known
        self._told = ""  # the cause that was said last
        self.rests = ""  # why the scheduler sends it nothing, though it could answer
        self._parts = parts
        self._threads = parts.threads
        self._turn = asyncio.Lock()  # of changes of models
        self._growth = Growth(name, self._clock.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._shut("it is being stopped")
        await self._pools.close()
        await self._crew.end()

    async def retire(self) -> None:
        """Accept no more, and finish what runs; what waits is given back."""
        self._shut("it is being removed")
        await self._pools.idle()

    def _shut(self, why: str) -> None:
        self._why = why
        self.ready.clear()
        self._dispatch.close(why)
        self._pools.stay()

    def rest(self, rest_s: float) -> None:
        """It rested before the agent began anew, and goes on to. To be called before `run`."""
        self._why = "its processes died again and again before the agent began anew"
        self._restarts.quarantine(rest_s)

    def submit(self, work: Work) -> None:
        """Accept a call: `work.done` will have its answer or an error. Raises BusyError."""
        try:
            if not self.ready.is_set():
                raise BusyError(
                    f"domain {self.name} is not ready: {self.cause or 'its process has ended'}",
                    "try again later; `holdfast status` shows how it goes",
                    self._restarts.rest_s or RETRY_S,
                )
            self._dispatch.submit(work)
        except BusyError:
            self.figures.counted(work.model, "busy")
            raise
        work.done.add_done_callback(partial(self.figures.ended, work))

    def adopt(self, work: Work) -> None:
        """Take a call that another domain accepted; it waits until this one is ready."""
        self._dispatch.adopt(work)

    def leave(self, models: Container[str] | None = None) -> list[Work]:
        """Let go of the calls to these models (None: to any) that wait."""
        return self._dispatch.queue.leave(models)

    async def idle(self) -> None:
        """Until no call is under way; others may wait."""
        await self._pools.idle()

    def cancel(self, work: Work) -> None:
        """Nobody waits for this call any more."""
        self._dispatch.cancel(work)

    def restart(self) -> None:
        """Kill all instances that serve; others take their place. Ends a quarantine."""
        self._restarts.pardon()
        for instance in self._pools.started:
            if instance.ready:
                instance.excused = True
                instance.kill("restart was asked for")

    def kill_busy(self, why: str) -> int:
        """Kill the instances that have calls, which are made again; how many there were."""
        busy = self.busy
        for instance in busy:
            instance.kill(why)
        return len(busy)

    def hang(self) -> None:
        """Stop the process of each instance, as something in it may; for tests of the watch."""
        for pid in (one.pid for one in self._pools.instances):
            if pid:
                os.kill(pid, signal.SIGSTOP)

    def wait(self, why: str, hint: str) -> None:
        """It is not started yet, for this reason."""
        self._why, self.hint = why, hint

    async def run(self) -> None:
        """Start, and tend what runs, for ever."""
        self._crew.begin(self._start())
        self._crew.begin(self._tend())
        await self._crew.run()

    async def replace(self, models: Mapping[str, Model]) -> None:
        """Have these versions serve in place of the present ones.

        Raises ModelError when they must not: then nothing has changed.
        """
        async with self._turn:
            await self._replace(models)

    async def prove(self, model: Model) -> None:
        """Have a version show that it may serve, in a process that is thrown away.

        Raises ModelError.
        """
        models = {model.manifest.name: model}
        async with self._turn:
            pool = await self._proved_pool(models, models, Instances(), whole=False)
            await through(self._pools.discard(pool))

    def forget(self, name: str, version: int) -> None:
        """Go back to this version of a model no more: it goes."""
        held = self.previous.get(name)
        if held and held.manifest.version == version:
            self.previous = {key: one for key, one in self.previous.items() if key != name}
        stands_by = self._pools.former.models.get(name) if self._pools.former else None
        if stands_by and stands_by.manifest.version == version:
            self._pools.forget()

    async def change(self, settings: Settings, models: Mapping[str, Model], threads: int) -> None:
        """Have other settings hold, and these models serve. Raises ModelError, as `replace`."""
        async with self._turn:
            former = self.settings, self._threads
            self.settings, self._threads = settings, threads
            try:
                pool = self._pools.current
                if pool is None or not self._fits(pool, models):
                    await self._replace(models)
            except BaseException:  # whatever kept these from serving: the former hold
                self.settings, self._threads = former
                raise
            self.klass = Class[settings.class_.upper()]
            self._restarts.settings = settings
            self._dispatch.apply(settings, self._kind(self.models))
            for instance in self._pools.instances:
                instance.apply(settings)
            if self._pools.current:
                self._resize(self._pools.current)

    async def _start(self) -> None:
        await self._restarts.rest(self._restarts.rest_s)
        while not self._begun:
            async with self._turn:
                if not self._begun:  # an order may have come first
                    pause_s = await self._begin()
                self.tried.set()
            if not self._begun:
                self._parts.changed(self)
                await self._restarts.rest(pause_s)

    @property
    def _begun(self) -> bool:
        return self._pools.current is not None

    async def _begin(self) -> float:
        """Serve for the first time; where that cannot be, seconds until the next try."""
        models: Mapping[str, Model] = {}
        try:
            models = await asyncio.to_thread(self._parts.choose)
            await self._replace(models)
        except HoldfastError as error:
            if self._began_below(models, error):
                return 0.0
            known, self._why, self.hint = self._why, str(error), error.hint
            self._parts.refused(error)
            if isinstance(error, Refused):  # a process was started, and ended
                self._restarts.count += 1
                pause_s, known = self._restarts.died(), ""
            else:
                pause_s = self._restarts.later()
            level = logging.DEBUG if self._why == known else logging.WARNING  # once is enough
            log.log(level, "domain %s: %s; next start in %.1f s", self.name, self._why, pause_s)
            return pause_s
        return 0.0

    def _began_below(self, models: Mapping[str, Model], error: HoldfastError) -> bool:
        """Whether these models, which cannot serve for this reason, do so elsewhere now."""
        return False

    async def _replace(self, models: Mapping[str, Model]) -> None:
        kind, former, sizes = self._kind(models), self._pools.former, self.settings.instances
        if former and self._whole(former, models):
            pool = former
        else:
            pool = await self._proved_pool(models, self._fresh(models), sizes, whole=self._begun)
        self._dispatch.apply(self.settings, kind)
        self._switch(pool)

    def _fresh(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Those of them that have yet to show that they may serve."""
        return {name: one for name, one in models.items() if self.models.get(name) != one}

    async def _proved_pool(
        self,
        models: Mapping[str, Model],
        fresh: Mapping[str, Model],
        sizes: Instances,
        *,
        whole: bool,
        setup: wire.Setup | None = None,
    ) -> Pool:
        """A pool whose `fresh` models have shown that they may serve. Raises Refused."""
        pool = self._pool(models, setup)
        try:
            await Candidate(pool, fresh, self._parts.prove).prove(sizes, whole=whole)
        except BaseException:  # a cancellation too: no process of it stays
            await through(self._pools.discard(pool))
            raise
        return pool

    def _fits(self, pool: Pool, models: Mapping[str, Model]) -> bool:
        """Whether its processes are what they would be if they were started now."""
        return pool.models == models and pool.setup == self._setup(models)

    def _whole(self, pool: Pool, models: Mapping[str, Model]) -> bool:
        """Whether a pool that stands by can serve these models as it is."""
        return self._fits(pool, models) and len(pool.ready) >= self.settings.instances.min

    def _kind(self, models: Mapping[str, Model]) -> Kind:
        return wishes.kind(self.name, self.settings, models.values())

    def _setup(self, models: Mapping[str, Model]) -> wire.Setup:
        return wishes.setup(self.settings, models.values(), self._threads)

    def _pool(self, models: Mapping[str, Model], setup: wire.Setup | None = None) -> Pool:
        parts = (self._instance, self._restarts, self._dispatch, self._look, self._crew)
        pool = Pool(self.name, models, setup or self._setup(models), *parts)
        self._pools.all.append(pool)
        return pool

    def _instance(self, pool: Pool) -> Instance:
        labels = {name: model.label for name, model in pool.models.items()}
        parts = (self.settings, pool, self._clock, self._parts.cell, self._parts.zygote)
        return Instance(pool.setup, labels, *parts)

    def _switch(self, pool: Pool) -> None:
        """From now on, `pool` serves."""
        if former := self._pools.current:
            self.previous = former.models
        self._restarts.pardon()  # what died was the former, or before it was proved
        self._resize(pool)
        self._pools.switch(pool, self.settings.keep_previous_s)
        self.models = pool.models
        self._why = self.hint = ""
        self._look(pool)
        self._dispatch.pump_soon()

    def _resize(self, pool: Pool) -> None:
        """As many instances as it has at least; more are for growth.py to add."""
        sizes = self.settings.instances
        pool.resize(sizes.min, sizes.min + sizes.spare)

    def _look(self, pool: Pool) -> None:
        """Whether it is ready may have changed."""
        if pool is self._pools.current and not self._dispatch.closed:
            self._tell()

    def _tell(self) -> None:
        """Say whether it is ready, to whoever waits for it."""
        was = self.ready.is_set()
        if self._serves():
            self.ready.set()
        else:
            self.ready.clear()
            if self.quarantined and not self._pools.started:
                self._dispatch.refuse(f"it rests: {self.cause}", self._restarts.rest_s)
        if self.ready.is_set() or was or self.quarantined or self.cause != self._told:
            self._told = self.cause
            self._parts.changed(self)
        self._dispatch.pump_soon()

    async def _tend(self) -> None:
        """Grow while calls wait, shrink when they do not."""
        while True:
            await asyncio.sleep(TEND_S)
            pool, sizes = self._pools.current, self.settings.instances
            now_s = self._clock.monotonic()
            if pool and sizes.max > sizes.min:
                self._growth.tend(pool, sizes, self._dispatch.queue.head(now_s), now_s)
