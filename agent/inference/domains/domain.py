"""A domain: a queue of calls, and the pool of instances that answers them.

At any time one pool serves. Another set of models comes in processes of their own: they are
started, proved, and then take over between two calls; the former pool finishes what it has and
stands by for `keep_previous_s`. The first start is the same thing, with nothing before it.

Limits  : as its settings say; one candidate at a time, one pool that stands by.
Recovery: a dead instance is replaced (pool.py), its calls are made once more (dispatch.py). What
          cannot start at all is tried again as restarts.py says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Self

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import BusyError, CallLost, DomainError, HoldfastError, ModelError, NotNow
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.dispatch import KINDS, Dispatch, Kind
from agent.inference.domains.figures import Figures
from agent.inference.domains.instance import Cell, Instance, setup_of
from agent.inference.domains.lease import Lease
from agent.inference.domains.pool import Pool
from agent.inference.domains.restarts import Restarts
from agent.inference.domains.work import Class, Result, Work
from agent.tasks import Crew
from agent.words import counted

log = logging.getLogger("domain")
GROW_AFTER_S = 0.1  # a call waited so long, and there may be one instance more
SHRINK_AFTER_S = 30.0  # so long the last instance in line had nothing to do
TEND_S = 0.1

Ask = Callable[[Work], Awaitable[Result]]
Prove = Callable[[Model, wire.Loaded, Ask], Awaitable[None]]


class Domain:
    """The running domain; an async context manager. `run` keeps it alive."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        choose: Callable[[], dict[str, Model]],
        clock: Clock,
        changed: Callable[["Domain"], None],
        prove: Prove,
        cell: Cell,
        threads: int,
        lease: Lease | None = None,
    ) -> None:
        """`choose`, called in a thread, finds the models to begin with, or raises HoldfastError.

        `changed` is called when it becomes ready or is lost, or its models change.

        `prove` raises ModelError for a model that must not serve; `cell` puts processes under the
        domain's limits; `threads` are those of each instance; `lease` shares out the GPU's time
        (none: there is no other domain).
        """
        self.name = name
        self.settings = settings
        self.klass = Class[settings.class_.upper()]
        self.ready = asyncio.Event()
        self._restarts = Restarts(settings, clock)
        self.figures = Figures()
        self.models: dict[str, Model] = {}  # those that serve; none before the first do
        self.previous: dict[str, Model] = {}
        self._choose = choose
        self._why = "starting"
        self.hint = ""  # what may help, where that is known
        self._clock = clock
        self._changed = changed
        self._prove = prove
        self._cell = cell
        self._threads = threads
        self._crew = Crew()
        self._turn = asyncio.Lock()  # of changes of models
        self._current: Pool | None = None
        self._former: Pool | None = None
        self._pools: set[Pool] = set()
        self._idle_since_s = clock.monotonic()
        self.lease = lease or Lease(clock)
        parts = (self._serving, self._present, clock, self.figures, self.lease)
        self._dispatch = Dispatch(name, settings, KINDS["onnx"], *parts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ready.clear()
        self._dispatch.close("it is being stopped")
        for pool in list(self._pools):
            await pool.close()
        await self._crew.end()

    @property
    def cause(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.ready.is_set():
            return ""
        return (self._current.cause if self._current else "") or self._why

    @property
    def restarts(self) -> int:
        """Processes that were started in place of others."""
        return self._restarts.count

    @property
    def quarantined(self) -> bool:
        """Whether it rests, because it died again and again."""
        return self._restarts.quarantined

    @property
    def waiting(self) -> int:
        """Calls in its queue."""
        return len(self._dispatch.queue)

    @property
    def gpu_s(self) -> float:
        """Seconds of the GPU that it has used."""
        return self._dispatch.seat.used_s

    @property
    def processes(self) -> dict[str, int]:
        """How many get calls, how many stand by for them, how many are not ready."""
        serving, ready = len(self._serving()), len(self.instances)
        every = len(self._current.all) if self._current else 0
        return {"serving": serving, "spare": ready - serving, "starting": every - ready}

    @property
    def instances(self) -> list[Instance]:
        """Those that serve, then those that stand by for them."""
        return list(self._current.ready) if self._current else []

    @property
    def pid(self) -> int | None:
        """The process id of the first instance that serves, or starts."""
        found = [*self.instances, *(self._current.all if self._current else [])]
        return next((one.pid for one in found if one.pid), None)

    def loaded(self, model: str) -> wire.Loaded | None:
        """What the instances say of a model; None while none is ready."""
        return next((one.loaded[model] for one in self.instances), None)

    def submit(self, work: Work) -> None:
        """Accept a call: `work.done` will have its answer or an error. Raises BusyError."""
        try:
            if not self.ready.is_set():
                raise BusyError(
                    f"domain {self.name} is not ready: {self.cause or 'its process has ended'}",
                    "try again later; `holdfast status` shows how it goes",
                )
            self._dispatch.submit(work)
        except BusyError:
            self.figures.counted(work.model, "busy")
            raise
        work.done.add_done_callback(partial(self.figures.ended, work.model))

    def cancel(self, work: Work) -> None:
        """Nobody waits for this call any more."""
        self._dispatch.cancel(work)

    def restart(self) -> None:
        """Kill all instances that serve; others take their place."""
        self._restarts.pardon()
        if self._current is None:
            return
        for instance in self._current.all:
            if instance.ready:
                instance.excused = True
                instance.kill("restart was asked for")
        self._current.wake()

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

    async def change(self, settings: Settings, models: Mapping[str, Model]) -> None:
        """Have other settings hold, and these models serve. Raises ModelError, as `replace`."""
        async with self._turn:
            former, self.settings = self.settings, settings
            try:
                same = models == self.models and _in_process(former) == _in_process(settings)
                if self._current is None or not same:
                    await self._replace(models)
            except BaseException:
                self.settings = former
                raise
            self.klass = Class[settings.class_.upper()]
            self._restarts.settings = settings
            self._dispatch.apply(settings, self._kind(self.models))
            if self._current:
                sizes = settings.instances
                self._current.resize(sizes.min, sizes.min + sizes.spare)

    async def roll_back(self) -> None:
        """Have the former versions serve again. Raises NotNow, ModelError."""
        async with self._turn:
            if not self.previous:
                raise NotNow(
                    f"domain {self.name}: there is no former version to go back to",
                    "load one: holdfast models load NAME/VERSION",
                )
            former = self._former
            if former and len(former.ready) >= self.settings.instances.min:
                self._switch(former)
            else:
                await self._replace(self.previous)

    async def _start(self) -> None:
        while self._current is None:
            try:
                await self.replace(await asyncio.to_thread(self._choose))
            except HoldfastError as error:
                self._why, self.hint = str(error), error.hint
            if self._current is None:
                self._restarts.count += 1
                pause_s = self._restarts.died()
                log.warning("domain %s: %s; next start in %.1f s", self.name, self._why, pause_s)
                self._changed(self)
                await asyncio.sleep(pause_s)

    async def _replace(self, models: Mapping[str, Model]) -> None:
        kind = self._kind(models)
        pool = self._pool(models)
        sizes = self.settings.instances
        pool.resize(sizes.min, 1)  # one is proved before the others are started
        try:
            await self._came_or_failed(pool)
            instance = pool.ready[0]
            for name, model in models.items():
                if self.models.get(name) != model:
                    await self._prove(model, instance.loaded[name], self._asking(instance))
            pool.resize(sizes.min, sizes.min + sizes.spare)
            while self._current is not None and len(pool.ready) < sizes.min:
                await self._came_or_failed(pool)
        except (HoldfastError, asyncio.CancelledError):
            self._pools.discard(pool)
            await asyncio.shield(pool.close())
            raise
        self._switch(pool)
        self._dispatch.apply(self.settings, kind)

    def _kind(self, models: Mapping[str, Model]) -> Kind:
        """What holds for the engine of these models. Raises ModelError when they need several."""
        engines = {model.manifest.engine for model in models.values()}
        if len(engines) != 1:
            raise ModelError(
                f"domain {self.name}: its models need the engines {', '.join(sorted(engines))}",
                "make a domain for each engine",
            )
        kind, rules = KINDS[engines.pop()], self.settings
        delay_ms = rules.batch_delay_ms_max
        delay_s = kind.batch_delay_s if delay_ms is None else delay_ms / 1000
        return Kind(
            rules.batch_max or kind.batch_max,
            delay_s,
            rules.queue_max or kind.queue_max,
            kind.always_joins,
        )

    def _pool(self, models: Mapping[str, Model]) -> Pool:
        parts = (self._instance, self._restarts, self._dispatch, self._look, self._crew)
        pool = Pool(self.name, models, *parts)
        self._pools.add(pool)
        return pool

    def _switch(self, pool: Pool) -> None:
        """From now on, `pool` serves."""
        former, self._current = self._current, pool
        sizes = self.settings.instances
        pool.resize(sizes.min, sizes.min + sizes.spare)
        if former:
            self.previous = former.models
            former.renews = False
        pool.renews = True
        self._why = self.hint = ""
        forgotten, self._former = self._former, former
        self.models = pool.models
        if forgotten and forgotten is not pool:
            self._crew.begin(self._close(forgotten))
        if former:
            self._crew.begin(self._keep(former))
        self._look(pool)
        self._dispatch.pump_soon()

    async def _keep(self, former: Pool) -> None:
        """Let a pool that has served stand by for a while."""
        await asyncio.sleep(self.settings.keep_previous_s)
        if self._former is former:
            self._former = None
            await self._close(former)

    async def _close(self, pool: Pool) -> None:
        await pool.idle()  # each call is answered, or late, before long
        await pool.close()
        self._pools.discard(pool)

    async def _came_or_failed(self, pool: Pool) -> None:
        """Until one more instance is ready. Raises DomainError when one ended instead."""
        pool.failed.clear()
        pool.fresh.clear()
        waits = [asyncio.create_task(e.wait()) for e in (pool.failed, pool.fresh)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if pool.failed.is_set():
            raise DomainError(pool.cause)

    def _asking(self, instance: Instance) -> Ask:
        async def ask(work: Work) -> Result:
            work.once, work.holder = True, instance
            if not instance.ready:
                raise CallLost(f"domain {self.name}: its new process ended")
            instance.send([work], 1.0)
            return await work.done

        return ask

    def _instance(self, pool: Pool) -> Instance:
        rules = self.settings
        setup = setup_of(pool.models.values(), rules, self._threads)
        labels = {name: model.label for name, model in pool.models.items()}
        return Instance(setup, labels, rules, pool, self._clock, self._cell)

    def _serving(self) -> list[Instance]:
        return self._current.serving if self._current else []

    def _present(self) -> list[Instance]:
        return [one for pool in self._pools for one in pool.all]

    def _look(self, pool: Pool) -> None:
        """Whether it is ready may have changed."""
        if pool is not self._current:
            return
        was = self.ready.is_set()
        if pool.ready:
            self.ready.set()
        else:
            self.ready.clear()
        if self.ready.is_set() or was:
            self._changed(self)
        self._dispatch.pump_soon()

    async def _tend(self) -> None:
        """Grow while calls wait, shrink when they do not."""
        sizes = self.settings.instances
        while True:
            await asyncio.sleep(TEND_S)
            pool, now_s = self._current, self._clock.monotonic()
            if pool is None or sizes.max == sizes.min:
                continue
            head = self._dispatch.queue.head(now_s)
            if head or any(one.flights for one in pool.serving[sizes.min :]):
                self._idle_since_s = now_s
            serving = pool.serving_max
            if head and now_s - head.times.arrived_s > GROW_AFTER_S and serving < sizes.max:
                if len(pool.ready) >= min(pool.size, serving + sizes.spare):
                    pool.resize(serving + 1, serving + 1 + sizes.spare)
                    log.info("domain %s grows: %s", self.name, counted(serving + 1, "instance"))
            elif serving > sizes.min and now_s - self._idle_since_s > SHRINK_AFTER_S:
                pool.resize(serving - 1, serving - 1 + sizes.spare)
                self._idle_since_s = now_s


def _in_process(settings: Settings) -> tuple[object, ...]:
    """The settings that a running process cannot take over."""
    return settings.devices, settings.threads, settings.gpu_memory_bytes_max
