"""The state of the device as one document: what `holdfast status --json` and the API show.

A copy lies beside the store (`status.json`, written every few seconds), so that a technician reads
the last state of an agent that is down.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.conditions import Condition, Conditions
from agent.records import Balance
from agent.threads import apart

SNAPSHOT_S = 5.0


class Identity(TypedDict):
    """Which device it is, and of which version its agent."""

    device: str
    version: str


class Health(TypedDict):
    """How the device is, in short; `uptime` in seconds."""

    status: Literal["healthy", "degraded", "unhealthy"]
    uptime: float
    active_requests: int
    conditions: list[Condition]


class Short(Identity):
    """What the document of the state always has; `uptime` in seconds, the ledger by stream."""

    status: Literal["healthy", "degraded", "unhealthy"]
    uptime: float
    conditions: list[Condition]
    ledger: dict[str, Balance]


class Status:
    """Gathers what the parts say about themselves."""

    def __init__(
        self,
        identity: Callable[[], Identity],
        conditions: Conditions,
        clock: Clock,
        ledger: Callable[[], Awaitable[dict[str, Balance]]],
        parts: Mapping[str, Callable[[], Awaitable[Any]]],
        snapshot: Path,
        form: Any = Short,
    ) -> None:
        """`parts` become sections of the document, in their order; `form` is its type."""
        self.form = form
        self._identity = identity
        self._conditions = conditions
        self._clock = clock
        self._ledger = ledger
        self._parts = parts
        self._snapshot = snapshot
        self._writing = threading.Lock()
        self._began = clock.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds since the agent began."""
        return round(self._clock.monotonic() - self._began, 1)

    def health(self, active_requests: int) -> Health:
        """The short form for machines; touches nothing that could block."""
        return {
            "status": self._conditions.status(),
            "uptime": self.uptime_s,
            "active_requests": active_requests,
            "conditions": self._conditions.all(),
        }

    async def document(self) -> dict[str, Any]:
        """The whole state."""
        ledger = await self._ledger()
        short: Short = {
            "status": self._conditions.status(),
            "uptime": self.uptime_s,
            **self._identity(),
            "conditions": self._conditions.all(),
            "ledger": ledger,
        }
        return {**short, **{name: await part() for name, part in self._parts.items()}}

    async def run(self) -> None:
        """Write the snapshot, again and again."""
        while True:
            try:
                await self.write()
            except (StoreError, OSError) as error:
                self._conditions.hold(
                    *("store_unreadable", "store", "critical", str(error)),
                    getattr(error, "hint", "check the disk of the store"),
                )
            else:
                self._conditions.clear("store_unreadable", "store")
            await asyncio.sleep(SNAPSHOT_S)

    async def write(self) -> None:
        """Write the snapshot now, whole or not at all; a copy for people, so not fsynced.

        In a thread, for a disk that hangs is not to hold up the loop. Raises StoreError when the
        ledger cannot be read.
        """
        # The next start learns from it how long this one lived (health/starts).
        alive = {"boot": self._clock.boot, "mono_s": round(self._clock.monotonic(), 1)}
        at_us = int(self._clock.wall() * 1e6)
        document = {**await self.document(), "at_us": at_us, "alive": alive}
        try:
            await apart(partial(self._replace, msgspec.json.encode(document)))
        except OSError as error:
            self._conditions.hold(
                "snapshot_unwritable",
                "status",
                "warning",
                f"{self._snapshot}: {error.strerror}",
                "check room and rights on the disk of the store",
            )
        else:
            self._conditions.clear("snapshot_unwritable", "status")

    def _replace(self, content: bytes) -> None:
        fresh = self._snapshot.with_suffix(".new")
        with self._writing:  # the last one may still be at it when the agent ends
            fresh.write_bytes(content)
            fresh.replace(self._snapshot)
