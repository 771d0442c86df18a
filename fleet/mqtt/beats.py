"""Heartbeats: only the newest of a device counts, so they wait, and are written together.

Limits  : BEATS_MAX devices between two writes; those beyond are left out, and counted. So is one
          that the database cannot take.
"""

import asyncio
import logging

from agent.errors import StoreError
from agent.protocol.presence import Heartbeat
from fleet.mqtt.metrics import Metrics
from fleet.store.cloud import Cloud
from fleet.store.database import Unfit

log = logging.getLogger("ingest")
BEATS_MAX = 100_000
AT_ONCE = 1000


class Beats:
    """The newest heartbeat of each device, until it is written."""

    def __init__(self, cloud: Cloud, metrics: Metrics, heartbeat_s: float) -> None:
        self._cloud = cloud
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._newest: dict[str, Heartbeat] = {}

    def add(self, beat: Heartbeat) -> None:
        """One came."""
        if len(self._newest) >= BEATS_MAX and beat.device not in self._newest:
            self._metrics.heartbeats_left_out.inc()
        else:
            self._newest[beat.device] = beat

    async def run(self) -> None:
        """Write them each `heartbeat_s`, for ever."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await self.write()

    async def write(self) -> None:
        """Write what waits; it goes on waiting while the database is away."""
        while self._newest:
            devices = [device for device, _ in zip(self._newest, range(AT_ONCE), strict=False)]
            beats = {device: self._newest.pop(device) for device in devices}
            try:
                await self._note(beats)
            except StoreError as error:
                self._newest = {**beats, **self._newest}  # unless a newer one came
                self._metrics.faults.inc()
                log.error("%s (%s); the heartbeats wait", error, error.hint)
                return

    async def _note(self, beats: dict[str, Heartbeat]) -> None:
        """Write these; what the database cannot take is found by halving. Raises StoreError."""
        try:
            await self._cloud.note([], beats)
        except Unfit as error:
            devices = list(beats)
            if len(devices) == 1:
                self._metrics.heartbeats_left_out.inc()
                log.warning("the heartbeat of %r is left out: %s", devices[0], error)
                return
            middle = len(devices) // 2
            for some in (devices[:middle], devices[middle:]):
                await self._note({device: beats[device] for device in some})
