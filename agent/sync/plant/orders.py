"""Orders of the site's systems: each becomes a command of the journal, and nothing else.

Limits: ORDERS_MAX wait; more are refused. They are given one after the other, in their order.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.protocol.commands import Command, Result
from agent.words import quoted

log = logging.getLogger("plant")
ORDERS_MAX = 32
RESTART, REBOOT = "device.restart", "device.reboot"
PAUSE, RESUME, NOW = "sync.pause", "sync.resume", "sync.now"
ORDERS = (RESTART, REBOOT, PAUSE, RESUME, NOW)
Order = Callable[[Command], Awaitable[Result]]


class Orders:
    """Of one system. `last` is what became of the last one, in words; '' at first."""

    def __init__(
        self, section: str, order: Order, conditions: Conditions, changed: Callable[[], None]
    ) -> None:
        """`order` accepts a command, whose effect may come later; `changed`: there is a `last`."""
        self.last = ""
        self._section = section
        self._order = order
        self._conditions = conditions
        self._changed = changed
        self._waiting = asyncio.Queue[Command](ORDERS_MAX)

    def give(self, name: str, args: dict[str, Any] | None = None, id: str = "") -> None:
        """Have it ordered soon. The same `id` has one effect; none: it is an order of its own."""
        id = id or f"{self._section}-{uuid.uuid4().hex}"
        command = Command(id=id, name=name, args=args or {}, issuer=self._section)
        try:
            self._waiting.put_nowait(command)
        except asyncio.QueueFull:
            self.refuse(f"{name}: {ORDERS_MAX} orders wait already")

    def refuse(self, why: str, remedy: str = "send it again, later") -> None:
        """What came is no order that can be given."""
        self._conditions.hold("order_refused", self._section, "note", why, remedy)

    async def run(self) -> None:
        """Give the orders, for ever."""
        while True:
            command = await self._waiting.get()
            try:
                result = await self._order(command)
            except HoldfastError as error:
                self._ended(command, f"failed: {error}")
                self.refuse(f"{command.name}: {error}", error.hint or "holdfast commands ls")
            else:
                self._ended(command, f"{result.state}{f': {why}' if (why := _why(result)) else ''}")
                if result.state == "refused":
                    why = _why(result)
                    self.refuse(f"{command.name}: {why}", result.hint or "holdfast commands ls")
                else:
                    self._conditions.clear("order_refused", self._section)

    def _ended(self, command: Command, what: str) -> None:
        log.info("%s ordered %s (%s): %s", self._section, command.name, command.id, what)
        self.last = quoted(f"{command.name} {what}")
        self._changed()


def _why(result: Result) -> str:
    return result.message or result.reason
