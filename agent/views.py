"""What the status shows of each part, and the form of the whole."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from agent.audio.recordings import Folder
from agent.audio.source import Source
from agent.clock import Clock
from agent.health.accelerators import AcceleratorsShown
from agent.health.flash import Flash, FlashShown
from agent.health.power.power import PowerShown
from agent.health.starts.starts import StartShown
from agent.health.status import Short
from agent.host.disk import disk
from agent.inference.domains import wishes
from agent.inference.domains.domain import Domain
from agent.inference.domains.domains import Domains
from agent.inference.scheduler import Scheduler
from agent.inference.shown import DomainShown, FallShown, InstanceShown, ModelShown
from agent.shown import Sync
from agent.store.quarantine import PutAside
from agent.store.scrub import ScrubShown
from agent.store.store import Store


class StoreShown(Struct, frozen=True):
    """The store, what of it was put aside, and its disk."""

    path: str
    epoch: str
    used_bytes: int
    bytes_max: int
    scrub: ScrubShown
    quarantine: list[PutAside]
    disk_free_bytes: int
    disk_size_bytes: int
    flash: FlashShown


class SourceShown(Struct, frozen=True):
    """A source of sound; of a folder, how many recordings could not be read."""

    kind: str
    rejected: int | UnsetType = UNSET


class State(Short):
    """The whole state of the device."""

    link: Sync
    domains: dict[str, DomainShown]
    models: dict[str, ModelShown]
    store: StoreShown
    sources: dict[str, SourceShown]
    accelerators: AcceleratorsShown
    power: PowerShown
    start: StartShown


class Sections(NamedTuple):
    """Who makes the sections of a State, by their names."""

    link: Callable[[], Awaitable[Sync]]
    domains: Callable[[], Awaitable[dict[str, DomainShown]]]
    models: Callable[[], Awaitable[dict[str, ModelShown]]]
    store: Callable[[], Awaitable[StoreShown]]
    sources: Callable[[], Awaitable[dict[str, SourceShown]]]
    accelerators: Callable[[], Awaitable[AcceleratorsShown]]
    power: Callable[[], Awaitable[PowerShown]]
    start: Callable[[], Awaitable[StartShown]]


class Views:
    """Looks at the parts when it is asked; `sources` may still grow."""

    def __init__(
        self,
        domains: Domains,
        scheduler: Scheduler,
        store: Store,
        flash: Flash,
        sources: list[Source],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._domains = domains
        self._scheduler = scheduler
        self._store = store
        self._flash = flash
        self._sources = sources

    async def domains(self) -> dict[str, DomainShown]:
        """Each domain, by name."""
        return {
            domain.name: _domain(domain, self._clock.monotonic()) for domain in self._domains.all()
        }

    async def models(self) -> dict[str, ModelShown]:
        """Each model that a domain has, by name."""
        return {
            name: self._model(domain, name)
            for domain in self._domains.all()
            for name in domain.settings.models
        }

    def _model(self, domain: Domain, name: str) -> ModelShown:
        model, loaded = domain.models.get(name), domain.loaded(name)
        previous = domain.previous.get(name)
        if model is None:
            return ModelShown(domain=domain.name, ready=False, loaded=False)
        return ModelShown(
            domain=domain.name,
            ready=loaded is not None,
            loaded=True,
            engine=model.manifest.engine,
            version=model.manifest.version,
            previous=previous.manifest.version if previous else None,
            sha256=model.sha256,
            size_bytes=model.manifest.size_bytes,
            ep=loaded.ep if loaded else None,
            load_s=round(loaded.load_s, 3) if loaded else None,
            breaker=self._scheduler.breaker_state(model),
            warnings=[*model.warnings, *wishes.unmet(domain.settings, model)],
            instead_of=self._domains.instead(domain).get(name),
        )

    async def store(self) -> StoreShown:
        """The store and its disk. Raises StoreError."""
        store = self._store
        space = disk(store.path.parent)
        return StoreShown(
            path=str(store.path),
            epoch=store.epoch,
            used_bytes=await store.used_bytes(),
            bytes_max=store.bytes_max,
            scrub=store.scrub.state(),
            quarantine=await store.salvage.reports(),
            disk_free_bytes=space.free_bytes,
            disk_size_bytes=space.size_bytes,
            flash=await self._flash.state(),
        )

    async def sources(self) -> dict[str, SourceShown]:
        """Each source, by name."""
        return {
            source.name: SourceShown(
                type(source).__name__.lower(),
                source.rejected if isinstance(source, Folder) else UNSET,
            )
            for source in self._sources
        }


def _domain(domain: Domain, now_s: float) -> DomainShown:
    instances = domain.instances
    return DomainShown(
        ready=domain.ready.is_set(),
        cause=domain.cause,
        klass=domain.settings.class_,
        ep=next((one.ep for i in instances[:1] for one in i.loaded.values()), ""),
        pid=domain.pid,
        instances=[InstanceShown(one.pid, one.calls) for one in instances],
        waiting=domain.waiting,
        restarts=domain.restarts,
        quarantined=domain.quarantined,
        model=", ".join(model.label for model in domain.models.values()),
        fallen={name: _fallen(domain, name, now_s) for name in domain.falls},
        cpu_twin=("ready" if twin.ready.is_set() else "starting")
        if (twin := domain.twin)
        else None,
        rests=domain.rests,
    )


def _fallen(domain: Domain, name: str, now_s: float) -> FallShown:
    fall, ratio = domain.falls[name], domain.cost_ratio(name)
    return FallShown(
        *(fall.fault, fall.cause, round(now_s - fall.since_s, 1)),
        cost_ratio=ratio and round(ratio, 2),
        probe_s=max(0.0, round(fall.due_s - now_s, 1)),
        passes=fall.passes,
        passes_min=domain.settings.probes_min,
        refusal=fall.refusal,
    )
