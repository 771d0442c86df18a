"""What the status shows of each part, as plain documents."""

from typing import Any

import msgspec

from agent.audio.recordings import Folder
from agent.audio.source import Source
from agent.health.flash import Flash
from agent.host.disk import disk
from agent.inference.domains import wishes
from agent.inference.domains.domain import Domain
from agent.inference.domains.domains import Domains
from agent.inference.scheduler import Scheduler
from agent.store.store import Store


class Views:
    """Looks at the parts when it is asked; `sources` may still grow."""

    def __init__(
        self,
        domains: Domains,
        scheduler: Scheduler,
        store: Store,
        flash: Flash,
        sources: list[Source],
    ) -> None:
        self._domains = domains
        self._scheduler = scheduler
        self._store = store
        self._flash = flash
        self._sources = sources

    async def domains(self) -> dict[str, Any]:
        """Each domain, by name."""
        return {domain.name: _domain(domain) for domain in self._domains.all()}

    async def models(self) -> dict[str, Any]:
        """Each model that a domain has, by name."""
        return {
            name: self._model(domain, name)
            for domain in self._domains.all()
            for name in domain.settings.models
        }

    def _model(self, domain: Domain, name: str) -> dict[str, Any]:
        model, loaded = domain.models.get(name), domain.loaded(name)
        previous = domain.previous.get(name)
        if model is None:
            return {"domain": domain.name, "ready": False, "loaded": False}
        return {
            "domain": domain.name,
            "ready": loaded is not None,
            "loaded": True,
            "version": model.manifest.version,
            "previous": previous.manifest.version if previous else None,
            "sha256": model.sha256,
            "size_bytes": model.manifest.size_bytes,
            "ep": loaded.ep if loaded else None,
            "load_s": round(loaded.load_s, 3) if loaded else None,
            "breaker": self._scheduler.breaker_state(model),
            "warnings": [*model.warnings, *wishes.unmet(domain.settings, model)],
            "instead_of": self._domains.instead(domain).get(name),
        }

    async def store(self) -> dict[str, Any]:
        """The store and its disk. Raises StoreError."""
        store = self._store
        space = disk(store.path.parent)
        return {
            "path": str(store.path),
            "epoch": store.epoch,
            "used_bytes": await store.used_bytes(),
            "bytes_max": store.bytes_max,
            "scrub": store.scrub.state(),
            "quarantine": msgspec.to_builtins(await store.salvage.reports()),
            "disk_free_bytes": space.free_bytes,
            "disk_size_bytes": space.size_bytes,
            "flash": await self._flash.state(),
        }

    async def sources(self) -> dict[str, Any]:
        """Each source, by name."""
        return {
            source.name: {
                "kind": type(source).__name__.lower(),
                **({"rejected": source.rejected} if isinstance(source, Folder) else {}),
            }
            for source in self._sources
        }


def _domain(domain: Domain) -> dict[str, Any]:
    instances = domain.instances
    return {
        "ready": domain.ready.is_set(),
        "cause": domain.cause,
        "class": domain.settings.class_,
        "ep": next((one.ep for i in instances[:1] for one in i.loaded.values()), ""),
        "pid": domain.pid,
        "instances": [{"pid": one.pid, "calls": one.calls} for one in instances],
        "waiting": domain.waiting,
        "restarts": domain.restarts,
        "quarantined": domain.quarantined,
        "model": ", ".join(model.label for model in domain.models.values()),
    }
