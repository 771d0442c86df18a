"""What the status shows of each part, as plain documents."""

from typing import Any

import msgspec

from agent.audio.recordings import Folder
from agent.audio.source import Source
from agent.health.flash import Flash
from agent.host.disk import disk
from agent.inference.domain import Domain
from agent.store.store import Store


class Views:
    """Looks at the parts when it is asked; `sources` may still grow."""

    def __init__(self, domain: Domain, store: Store, flash: Flash, sources: list[Source]) -> None:
        self._domain = domain
        self._store = store
        self._flash = flash
        self._sources = sources

    async def domains(self) -> dict[str, Any]:
        """Each domain, by name."""
        domain = self._domain
        return {
            domain.name: {
                "ready": domain.ready.is_set(),
                "cause": domain.cause,
                "ep": domain.ep,
                "pid": domain.pid,
                "restarts": domain.restarts,
                "model": domain.model.label,
            }
        }

    async def models(self) -> dict[str, Any]:
        """Each model, by name."""
        manifest = self._domain.model.manifest
        return {
            manifest.name: {
                "version": manifest.version,
                "sha256": manifest.sha256,
                "size_bytes": manifest.size_bytes,
                "domain": self._domain.name,
            }
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
