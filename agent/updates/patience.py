"""How often something is tried again, and after which rests."""

import asyncio
import random

from agent.config import Updates as Settings
from agent.updates.fetched import NotFetched
from agent.updates.source import Away


class Patience:
    """Of one file; what brings something is no try in vain."""

    def __init__(self, settings: Settings, tries_max: int = 1000) -> None:
        """It ends after `tries_max` in vain, or as many as the settings say."""
        self._settings = settings
        self._tries_max = min(tries_max, settings.tries_max)
        self._tries = 0

    def gained(self) -> None:
        """Something came."""
        self._tries = 0

    async def rest(self, fault: Away, name: str) -> None:
        """Wait, longer each time, and not with all devices at once. Raises NotFetched at last."""
        self._tries += 1
        if self._tries >= self._tries_max:
            raise NotFetched("unreachable", str(fault), fault.hint) from fault
        longest_s = self._settings.backoff_s_min * 2 ** min(self._tries - 1, 30)
        rest_s = min(longest_s, self._settings.backoff_s_max)
        await asyncio.sleep(rest_s * random.uniform(0.5, 1.0))
