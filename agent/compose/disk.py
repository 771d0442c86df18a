"""The disk of the store: whether it is there, and where records go while it is not."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.host import mounts
from agent.store import standby
from agent.store.lock import Lock

log = logging.getLogger("store")


class StoreDisk:
    """What /etc/fstab mounts above `store.path`; a store without such a disk has no standby."""

    def __init__(
        self,
        settings: config.Store,
        conditions: Conditions,
        clock: Clock,
        root: Path = mounts.ROOT,
        is_mounted: Callable[[Path], bool] = mounts.is_mounted,
    ) -> None:
        """`settings` become those that count."""
        self.settings = settings
        self._conditions = conditions
        self._clock = clock
        self._standby: Path | None = None
        path = mounts.absolute(settings.path)
        point = mounts.point(path, root)
        if point is None:
            return
        self._standby = standby.place(path, point)
        if not is_mounted(point):
            self._stand_by(point, self._standby)
            self._standby = None

    def _stand_by(self, point: Path, place: Path) -> None:
        bytes_max = min(self.settings.bytes_max, standby.BYTES_MAX)
        self.settings = replace(self.settings, path=str(place), bytes_max=bytes_max)
        self._conditions.hold(
            "store_disk_missing",
            str(point),
            "critical",
            f"/etc/fstab has a disk for {point}, and none is mounted there: records are kept in "
            f"{place} meanwhile, up to {bytes_max} bytes",
            f"look at `systemctl status {point}` and at the disk (fsck), mount it, then restart "
            "the agent: what was kept meanwhile is saved into the store",
        )

    async def bring_home(self) -> None:
        """Before the store is opened: what was kept while its disk was not there.

        Raises StoreLocked, StoreError.
        """
        if self._standby and self._standby.parent.exists():
            await asyncio.to_thread(self._bring_home, self._standby)

    def _bring_home(self, place: Path) -> None:
        store = mounts.absolute(self.settings.path)
        lock = Lock(store)
        lock.take_name()
        try:
            standby.bring_home(store, place, self._clock.wall())
        except OSError as error:
            self._conditions.hold(
                "store_standby_left",
                str(place.parent),
                "warning",
                f"what was kept while the disk was not there cannot be saved into the store: "
                f"{error.strerror}",
                f"make room on the disk of {store}, then restart the agent; it stays until then",
            )
        else:
            log.info("what was kept in %s is saved into the store now", place.parent)
        finally:
            lock.release()
