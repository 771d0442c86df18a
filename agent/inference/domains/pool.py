"""A pool: the instances of a domain that run the same versions of its models.

Each slot keeps one instance alive: when that ends, it waits as restarts.py says and starts the next
(in a pool that serves; in one that is tried, or stands by, it does not).
The first `serving_max` ready instances serve, the others stand by: when one dies, the next one in
line serves at once, and its slot fills up the line from behind.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.flight import Flight
from agent.inference.domains.instance import Instance
from agent.inference.domains.restarts import Restarts
from agent.inference.domains.work import Work
from agent.tasks import Crew
from agent.words import counted

log = logging.getLogger("domain")


class Calls(Protocol):
    """Whose calls the instances answer; dispatch.py."""

    def answered(self, instance: Instance, flight: Flight, message: wire.Answers) -> None:
        """An instance is done with a batch."""

    def lost(self, instance: Instance, begun: list[Work], waiting: list[Work], cause: str) -> None:
        """An instance died of, or with, the calls it had begun; others waited in it."""


class Pool:
    """Slots, and the instances in them."""

    def __init__(
        self,
        name: str,
        models: Mapping[str, Model],
        setup: wire.Setup,
        make: Callable[["Pool"], Instance],
        restarts: Restarts,
        calls: Calls,
        changed: Callable[["Pool"], None],
        crew: Crew,
    ) -> None:
        """`setup` is what its processes are told; `make` builds an instance.

        `changed` is told when one came or went.
        """
        self.models = dict(models)
        self.setup = setup
        self.ready: list[Instance] = []  # in the order in which they will serve
        self.serving_max = 1
        self.cause = "starting"  # why the last instance ended, or that none was there yet
        self.fresh = asyncio.Event()  # one came
        self.failed = asyncio.Event()  # one went
        self.renews = False  # whether what ends is started again
        self._name = name
        self._make = make
        self._restarts = restarts
        self._calls = calls
        self._changed = changed
        self._crew = crew
        self._freed = asyncio.Event()  # one has less to do
        self._size = 0
        self._slots: dict[asyncio.Task[None], Instance | None] = {}  # none: it rests
        self._leaving: set[asyncio.Task[None]] = set()  # slots

    @property
    def serving(self) -> list[Instance]:
        """The instances that get calls."""
        return self.ready[: self.serving_max]

    @property
    def size(self) -> int:
        """Slots."""
        return len(self._slots)

    @property
    def all(self) -> list[Instance]:
        """Every instance there is, ready or not."""
        return [one for one in self._slots.values() if one]

    def resize(self, serving_max: int, size: int) -> None:
        """So many may serve, so many slots there are; the last ones in line end first."""
        self.serving_max = serving_max
        self._size = size
        while len(self._slots) - len(self._leaving) < size:
            self._slots[self._crew.begin(self._keep())] = None
        self._trim()

    def _trim(self) -> None:
        """End the slots that are too many; those whose instances have calls, once they are idle."""
        staying = [task for task in self._slots if task not in self._leaving]
        surplus = max(0, len(staying) - self._size)
        if not surplus:
            return
        place = {instance: i for i, instance in enumerate(self.ready)}
        rank = {
            task: place.get(one, len(place)) if (one := self._slots[task]) else len(place)
            for task in staying
        }
        idle = [task for task in staying if not ((one := self._slots[task]) and one.flights)]
        for task in sorted(idle, key=lambda task: -rank[task])[:surplus]:
            instance = self._slots[task]
            if instance in self.ready:
                self.ready.remove(instance)
            self._leaving.add(task)
            task.cancel()

    def came(self, instance: Instance) -> None:
        """It is ready."""
        self.ready.append(instance)
        self.fresh.set()
        self.cause = ""
        for name, loaded in instance.loaded.items():
            log.info(
                "domain %s: %s is loaded on %s in %.2f s, pid %s",
                *(self._name, self.models[name].label, loaded.ep, loaded.load_s, instance.pid),
            )
        self._changed(self)

    def answered(self, instance: Instance, flight: Flight, answers: wire.Answers) -> None:
        """A batch is done."""
        self._restarts.succeeded()
        self._freed.set()
        self._trim()
        self._calls.answered(instance, flight, answers)

    def ailing(self, instance: Instance) -> None:
        """It ends: it gets no more calls."""
        if instance in self.ready:
            self.ready.remove(instance)
        self._changed(self)

    def went(self, instance: Instance, begun: list[Work], waiting: list[Work], cause: str) -> None:
        """It has ended, with these calls."""
        if instance in self.ready:
            self.ready.remove(instance)
        self._freed.set()
        self._calls.lost(instance, begun, waiting, cause)

    async def idle(self) -> None:
        """Until no call is under way."""
        while any(one.flights for one in self.all):
            self._freed.clear()
            await self._freed.wait()

    async def close(self) -> None:
        """End all instances; returns when they are gone."""
        self.ready.clear()
        tasks = list(self._slots)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep(self) -> None:
        """One slot."""
        task = asyncio.current_task()
        assert task is not None
        try:
            while True:
                self._slots[task] = instance = self._make(self)
                self.cause = await instance.run()
                self.failed.set()
                if not self.renews:
                    return
                pause_s = 0.0 if instance.excused else self._restarts.died()
                log.warning(
                    "domain %s lost: %s; %s left, next start in %.1f s",
                    *(self._name, self.cause, counted(len(self.ready), "ready instance"), pause_s),
                )
                self._slots[task] = None
                self._changed(self)
                await self._restarts.rest(pause_s)
                if not self.renews:
                    return
                self._restarts.count += 1
        finally:
            self.failed.set()  # where it was cancelled too: a proof may wait for its end
            del self._slots[task]
            self._leaving.discard(task)
