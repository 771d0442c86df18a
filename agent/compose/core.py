"""What every side of the agent stands on."""

from pathlib import Path
from typing import NamedTuple

from agent.clock import Clock
from agent.config import Config
from agent.health.conditions import Conditions
from agent.known_time import KnownTime
from agent.store.store import Store


class Core(NamedTuple):
    """`settings` are those of the start; `device` was read once."""

    settings: Config
    device: str
    clock: Clock
    conditions: Conditions
    store: Store
    known: KnownTime

    def beside(self, name: str) -> Path:
        """A file in the store's folder."""
        return self.store.path.with_name(name)
