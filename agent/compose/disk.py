"""The disk of the store: whether it serves, and where records go while it does not."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.same_store import SameStore
from agent.host import mounts
from agent.store import standby
from agent.store.lock import Lock
from agent.store.salvage import UNKNOWN
from agent.store.store import Store

log = logging.getLogger("store")
KNOWN = "store.json"  # in the state folder


class StoreDisk:
    """What is mounted above `store.path`; a store on the system's own disk has no standby."""

    def __init__(
        self,
        settings: config.Store,
        conditions: Conditions,
        clock: Clock,
        root: Path = mounts.ROOT,
        is_mounted: Callable[[Path], bool] = mounts.is_mounted,
        state: Path | None = None,
    ) -> None:
        """`settings` become those that count; `state` is the unit's folder, if it has one."""
        self.settings = settings
        self._conditions = conditions
        self._clock = clock
        self._standbys: list[Path] = []
        self._known: Path | None = None
        path = mounts.absolute(settings.path)
        named = mounts.point(path, root)
        point = named or mounts.holding(path)
        if point is None:  # there may have been one that /etc/fstab does not name
            self._known = state / KNOWN if state and (state / KNOWN).exists() else None
            return
        places = standby.places(path, point, state, beside=named is not None)
        if named and not is_mounted(named):
            self._is_missing(named, places)
        elif (refusal := standby.refusal(path)) and refusal.errno in standby.OF_THE_DISK:
            self._refuses(point, refusal, places)
        else:
            self._standbys = places
            if state and places and places[-1].is_relative_to(state):
                self._known = state / KNOWN

    def _is_missing(self, point: Path, places: list[Path]) -> None:
        places = [standby.open_place(one) for one in places]
        usable = [one for one in places if standby.refusal(one) is None]
        self._stand_by((usable or places)[0])  # never below the mount point
        self._conditions.hold(
            "store_disk_missing",
            str(point),
            "critical",
            f"/etc/fstab has a disk for {point}, and none is mounted there: {self._meanwhile()}",
            f"look at `systemctl status {point}` and at the disk (fsck), mount it, then restart "
            "the agent: what was kept meanwhile is saved into the store",
        )

    def _refuses(self, point: Path, refusal: OSError, places: list[Path]) -> None:
        places = [standby.open_place(one) for one in places]
        usable = [one for one in places if standby.refusal(one) is None]
        if not usable:
            return  # opening the store says what is wrong, and ends the agent
        self._stand_by(usable[0])
        self._conditions.hold(
            "store_disk_unusable",
            str(point),
            "critical",
            f"the store cannot be opened on the disk of {point}: {os.strerror(refusal.errno or 0)}:"
            f" {self._meanwhile()}",
            f"look at the disk (dmesg, fsck), at its room, and at the rights on {point}, then "
            "restart the agent: what was kept meanwhile is saved into the store",
        )

    def _stand_by(self, place: Path) -> None:
        bytes_max = min(self.settings.bytes_max, standby.BYTES_MAX)
        self.settings = replace(self.settings, path=str(place), bytes_max=bytes_max)

    def _meanwhile(self) -> str:
        bytes_max = self.settings.bytes_max
        return f"records are kept in {self.settings.path} meanwhile, up to {bytes_max} bytes"

    def same(self, store: Store) -> SameStore | None:
        """Who looks whether the disk is still the same; None: nothing off it could remember."""
        if self._known is None:
            return None

        async def epochs() -> set[str] | None:
            aside = {one.epoch for one in await store.salvage.reports()}
            if any(one.startswith(UNKNOWN) for one in aside):
                return None
            return {store.epoch, *aside, *await store.ledger.by_epoch()}

        path = str(mounts.absolute(self.settings.path))
        return SameStore(self._known, path, lambda: store.epoch, epochs, self._conditions)

    async def bring_home(self) -> None:
        """Before the store is opened: what was kept while its disk did not serve.

        Raises StoreLocked, StoreError.
        """
        for place in self._standbys:
            if place.parent.exists() and any(place.parent.iterdir()):
                await asyncio.to_thread(self._bring_home, place)

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
                f"what was kept while the disk did not serve cannot be saved into the store: "
                f"{error.strerror}",
                f"make room on the disk of {store}, then restart the agent; it stays until then",
            )
        else:
            log.info("what was kept in %s is saved into the store now", place.parent)
        finally:
            lock.release()
