"""A domain as it is seen: what works in it, and what can be said of that. It changes nothing."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.batches import KINDS
from agent.inference.domains.dispatch import Dispatch
from agent.inference.domains.figures import Figures
from agent.inference.domains.instance import Instance
from agent.inference.domains.ladder import Fall, Ladder
from agent.inference.domains.lease import Lease
from agent.inference.domains.pools import Pools
from agent.inference.domains.restarts import Restarts
from agent.inference.domains.waits import Waits
from agent.inference.domains.work import Class
from agent.tasks import Crew

if TYPE_CHECKING:
    from agent.inference.domains.domain import Domain


class Seen:
    """What a domain says of itself."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        clock: Clock,
        figures: Figures | None,
        lease: Lease | None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.klass = Class[settings.class_.upper()]
        self.ready = asyncio.Event()
        self.figures = figures or Figures()
        self.ladder = Ladder(settings)
        self.lease = lease or Lease(clock)
        self.models: dict[str, Model] = {}  # those that serve; none before the first do
        self._why = "starting"
        self._clock = clock
        self._restarts = Restarts(settings, clock)
        self._crew = Crew()
        self._pools = Pools(self._crew)
        self._waits = Waits()
        instances = (lambda: self._pools.serving), (lambda: self._pools.instances)
        ways = (*instances, clock, self.figures, self.lease)
        self._dispatch = Dispatch(name, settings, KINDS["onnx"], *ways)

    @property
    def cause(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.ready.is_set():
            return ""
        why = self._pools.cause or self._why
        if self.quarantined:
            return f"{why}; after so many deaths it rests for {self._restarts.rest_s:.0f} s"
        return why

    @property
    def restarts(self) -> int:
        """Processes that were started in place of others."""
        return self._restarts.count

    @property
    def deaths(self) -> int:
        """Processes that ended, and should not have."""
        return self._restarts.deaths

    @property
    def quarantined(self) -> bool:
        """Whether it rests, because it died again and again."""
        return self._restarts.quarantined

    @property
    def rest_s(self) -> float:
        """For how long it rests yet."""
        return self._restarts.rest_s

    @property
    def waiting(self) -> int:
        """Calls in its queue."""
        return len(self._dispatch.queue)

    @property
    def busy(self) -> list[Instance]:
        """Those that have calls."""
        return [one for one in self._pools.instances if one.flights]

    @property
    def owes(self) -> bool:
        """Whether there are calls that it could have answered by now, and did not yet.

        It could not where they all wait for the turn of another domain on the GPU (lease.py).
        """
        due = len(self._dispatch.queue) > 0 and not self._dispatch.seat.waits
        return due or bool(self.busy)

    def held_up_s(self) -> float:
        """Seconds so far in which one of its processes had calls, and wanted a processor in vain.

        Counted between each time that this is asked and the next.
        """
        return self._waits.look(self.busy)

    @property
    def gpu_s(self) -> float:
        """Seconds of the GPU that it has used."""
        return self._dispatch.seat.used_s

    @property
    def processes(self) -> dict[str, int]:
        """How many get calls, how many stand by for them, how many are not ready."""
        pools = self._pools
        serving, ready, every = len(pools.serving), len(pools.ready), len(pools.started)
        return {"serving": serving, "spare": ready - serving, "starting": every - ready}

    @property
    def instances(self) -> list[Instance]:
        """Those that serve, then those that stand by for them."""
        return list(self._pools.ready)

    @property
    def pid(self) -> int | None:
        """The process id of the first instance that serves, or starts."""
        found = [*self._pools.ready, *self._pools.started]
        return next((one.pid for one in found if one.pid), None)

    def loaded(self, model: str) -> wire.Loaded | None:
        """What the instances say of a model; None while none is ready, or it is not loaded."""
        return next((one.loaded.get(model) for one in self.instances), None)

    @property
    def falls(self) -> Mapping[str, Fall]:
        """The models that their accelerator failed, and why; twinned.py."""
        return self.ladder.falls

    @property
    def twin(self) -> "Domain | None":
        """The domain on the CPU that stands by, or serves, for this one."""
        return None

    def fell(self, fault: str, cause: str) -> None:
        """Somebody saw its accelerator fail, for this cause, of this class of faults."""

    def cost_ratio(self, model: str) -> float | None:
        """How many times as long a row takes on the CPU as it did; None: not measured."""
        return None

    def row_s(self, model: str) -> float | None:
        """What a row takes, as measured, at least at its warm-up; None: nobody knows."""
        loaded = next((one.loaded.get(model) for one in self._pools.ready), None)
        return self._dispatch.batches.costs[model].row_s() or (loaded.warm_up_s if loaded else None)

    @property
    def eps(self) -> dict[str, str]:
        """By model, the execution provider that it runs on now; not of one that is not ready."""
        found = {name: self.loaded(name) for name in self.models}
        return {name: loaded.ep for name, loaded in found.items() if loaded}

    def rows_in_time(self, model: str) -> int | None:
        """How many rows of a call are surely done within `call_timeout_s`; None: nobody knows."""
        loaded = self.loaded(model)
        return self._dispatch.rows_in_time(model, loaded) if loaded else None

    def _serves(self) -> bool:
        """Whether there is somebody to answer."""
        return bool(self._pools.ready)
