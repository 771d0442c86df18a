"""A domain with two sides: its own processes, and a twin on the CPU for models that fell from them.

The twin is a domain of its own: the same versions in processes whose only device is the CPU. Which
calls are whose is decided by model; from outside both are one domain. What falls, and when it
returns, is for twinned.py.
"""

from msgspec.structs import replace

from agent.config import Domain as Settings
from agent.config import Instances
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.candidate import Ask
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.instance import Instance
from agent.inference.domains.twins import Twins
from agent.inference.domains.work import Work

CPU = "CPUExecutionProvider"


class Sided(Domain):
    """A Domain, and its twin where there is one."""

    def __init__(self, name: str, settings: Settings, parts: Parts) -> None:
        super().__init__(name, settings, parts)
        self._twins = Twins(self._make, self.adopt, self._crew)

    async def __aexit__(self, *_: object) -> None:
        self._shut("it is being stopped")
        await self._twins.close()
        await super().__aexit__()

    async def retire(self) -> None:
        """Accept no more, and finish what runs; what waits is given back."""
        await super().retire()
        for twin in self._twins:
            await twin.retire()

    @property
    def twin(self) -> Domain | None:
        """The domain on the CPU, if there is one now."""
        return self._twins.one

    @property
    def cause(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.ready.is_set() or not self._all_below:
            return super().cause
        twin = self.twin.cause if self.twin else "it has ended"
        return f"{next(iter(self.falls.values())).cause}; its twin on the CPU: {twin}"

    @property
    def restarts(self) -> int:
        """Processes that were started in place of others."""
        return super().restarts + (self.twin.restarts if self.twin else 0)

    @property
    def waiting(self) -> int:
        """Calls in its queues."""
        return super().waiting + (self.twin.waiting if self.twin else 0)

    @property
    def busy(self) -> list[Instance]:
        """Those that have calls, on either side."""
        return [*super().busy, *(one for twin in self._twins for one in twin.busy)]

    @property
    def owes(self) -> bool:
        """Whether there are calls that it could have answered by now, and did not yet."""
        return super().owes or any(twin.owes for twin in self._twins)

    @property
    def processes(self) -> dict[str, int]:
        """Also `twin`: how many of them stand by on the CPU."""
        found = super().processes
        twin = self.twin.processes if self.twin else {"serving": 0, "spare": 0, "starting": 0}
        if self.twin and any(map(self._below, self.falls)):
            return {**{key: found[key] + twin[key] for key in found}, "twin": 0}
        return {**found, "twin": sum(twin.values())}

    @property
    def instances(self) -> list[Instance]:
        """Those that serve, then those that stand by for them, those on the CPU too."""
        twins = self.twin.instances if self.twin else []
        own = super().instances
        return [*twins, *own] if self._all_below else [*own, *twins]

    def loaded(self, model: str) -> wire.Loaded | None:
        """What the instances that answer it say of a model; None while there is none."""
        if self._below(model):
            return self.twin.loaded(model) if self.twin else None
        return next((one.loaded.get(model) for one in super().instances), None)

    def rows_in_time(self, model: str) -> int | None:
        """How many rows of a call are surely done within `call_timeout_s`; None: nobody knows."""
        if self.twin and self._below(model):
            return self.twin.rows_in_time(model)
        return super().rows_in_time(model)

    def cost_ratio(self, model: str) -> float | None:
        """How many times as long a row takes on the CPU as it did; None: not measured."""
        fall = self.falls.get(model)
        own = self.twin if self._below(model) else self
        now_s = own.row_s(model) if own else None
        return now_s / fall.row_s if fall and fall.row_s and now_s else None

    def submit(self, work: Work) -> None:
        """Accept a call: `work.done` will have its answer or an error. Raises BusyError."""
        if self.twin and self._below(work.model):
            self.twin.submit(work)
        else:
            super().submit(work)

    def adopt(self, work: Work) -> None:
        """Take a call that was accepted before; it waits until its side is ready."""
        if not self.elsewhere(work):
            super().adopt(work)

    def restart(self) -> None:
        """Kill all instances that serve; others take their place. Ends a quarantine."""
        super().restart()
        if self.twin:
            self.twin.restart()

    def hang(self) -> None:
        """Stop the process of each instance, as something in it may; for tests of the watch."""
        super().hang()
        for twin in self._twins:
            twin.hang()

    def elsewhere(self, work: Work) -> bool:
        """A call is to be made again; whether the twin has it."""
        if not self.twin or not self._below(work.model):
            return False
        self.twin.adopt(work)
        return True

    def _below(self, model: str) -> bool:
        """Whether the calls of a model are the twin's: it fell, and its own processes are no place.

        They are where all of them have it on the CPU by themselves.
        """
        if model not in self.ladder.falls or model not in self.models:
            return False
        own = self._pools.ready
        return not own or any(one.loaded[model].ep != CPU for one in own)

    @property
    def _all_below(self) -> bool:
        """Whether all its models are the twin's."""
        return bool(self.models) and all(map(self._below, self.models))

    def _hand_down(self) -> None:
        """Have the twin answer what waits for the fallen."""
        below = {name for name in self.ladder.falls if self._below(name)}
        if below:
            twin = self._twins.needed()
            for work in self.leave(below):
                twin.adopt(work)

    def _serves(self) -> bool:
        if self._all_below:
            return self.twin is not None and self.twin.ready.is_set()
        return super()._serves()

    def _make(self) -> Domain:
        """A twin, not started."""
        parts = self._parts._replace(
            choose=lambda: dict(self.models),
            changed=lambda _: self._tell(),
            refused=lambda _: None,
            prove=self._proved,
            threads=self._threads,
            lease=self.lease,
            figures=self.figures,
        )
        return Domain(f"{self.name} (its twin on the CPU)", on_cpu(self.settings), parts)

    async def _proved(self, model: Model, loaded: wire.Loaded, ask: Ask) -> None:
        """It may take its time: what a model's budget allows is meant for its accelerator."""
        patient = replace(model, manifest=replace(model.manifest, latency_ms_max=None))
        await self._parts.prove(patient, loaded, ask)

    async def _follow(self) -> None:
        """Have the twin be of the same versions."""
        await self._twins.change(on_cpu(self.settings), self.models, self._threads)
        self._hand_down()
        if self._pools.current:
            self._look(self._pools.current)


def on_cpu(settings: Settings) -> Settings:
    """Of the twin: one process, more while calls wait."""
    sizes = Instances(min=1, max=settings.instances.max)
    return replace(settings, devices=["cpu"], instances=sizes)
