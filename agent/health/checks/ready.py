"""Whether calls and records would be taken now: asked often, so it writes and infers nothing."""

import asyncio
from collections.abc import Callable

from agent.errors import StoreError
from agent.inference.domains.domain import Domain
from agent.store.store import Store

PATIENCE_S = 2.0  # for the store, which may be busy with a large commit


class Ready:
    """Asks the parts."""

    def __init__(self, domains: Callable[[], list[Domain]], store: Store) -> None:
        """`domains` are those that the configuration wants."""
        self._domains = domains
        self._store = store

    async def now(self) -> bool:
        """Whether every domain takes calls, and the store takes records."""
        if not all(domain.ready.is_set() for domain in self._domains()):
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._store.takes_records()
        except (StoreError, OSError, TimeoutError):  # conditions say what it is
            return False
        return True
