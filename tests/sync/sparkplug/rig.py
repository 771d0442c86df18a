"""A node on a line; `python -m tests.sync.sparkplug.rig FOLDER URL` is one that can be killed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent import config
from agent.sync.mqtt.brokers import MQTT5
from agent.sync.sparkplug.births import Births
from agent.sync.sparkplug.node import EdgeNode
from tests.sync.site import Watched, beside

GROUP = "Plant 1"


class Site(Watched):
    """A device whose node is at this broker."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        super().__init__(folder, url)
        made = {"group_id": GROUP, "sample_s": 0.02, **settings}
        self.settings = msgspec.convert(made, config.Sparkplug)
        self.patience_s: float | None = None

    def node(self) -> EdgeNode:
        return EdgeNode(
            *(self.settings, "dev", self.look, Births(self.folder / "sparkplug.json")),
            *(self.order, self.conditions, self.clock),
            patience_s=self.patience_s,
        )

    @asynccontextmanager
    async def born(self, version: Any = MQTT5) -> AsyncIterator[EdgeNode]:
        """The node runs."""
        node = self.node()
        place = self.place("sparkplug", self.settings)
        line = self.line(place, node, "sparkplug_down", version)
        async with beside(line.run(), node.orders.run()):
            yield node


async def _main(folder: str, url: str) -> None:
    async with Site(Path(folder), url).born():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
