"""The places in the ledger for sources that the configuration does not name.

Limits: SOURCES_MAX have one. For another one the source that is unused the longest gives its place,
if nothing of it is held and nobody brings sound of it: its takes are forgotten, and it may come
again. NAMES_MAX of them have a row in the store's file.
"""

import asyncio
import logging
from collections.abc import Callable

from agent.errors import BusyError, NotNow
from agent.store.takes import Takes
from agent.words import counted

log = logging.getLogger("source")
SOURCES_MAX = 64
NAMES_MAX = 1024
SHOWN = 5
RETRY_S, SOON_S = 10.0, 1.0


class Places:
    """Who has one."""

    def __init__(
        self, takes: Takes, configured: Callable[[], set[str]], busy: Callable[[str], bool]
    ) -> None:
        """`busy` says whether somebody brings sound of a source."""
        self._takes = takes
        self._configured = configured
        self._busy = busy
        self._names: dict[str, None] = {}  # that have one, the longest unused first
        self._resting: set[str] = set()  # that had one
        self._turn = asyncio.Lock()  # of who makes a place
        self._leaving: set[str] = set()  # of which it is being asked whether they can leave

    async def begin(self) -> None:
        """Know those of the store's file."""
        known = await self._takes.known()
        self._resting = {source for source, rests in known.items() if rests}
        self._names = dict.fromkeys(sorted(set(known) - self._resting))

    def use(self, source: str) -> None:
        """It has a place, and is the last one in use."""
        self._names.pop(source, None)
        self._names[source] = None
        self._resting.discard(source)

    def check(self, source: str) -> None:
        """Raises BusyError for one that has no place and cannot have one, or may lose it now."""
        if source in self._leaving:
            raise BusyError(f"source {source!r} makes room for another", "send it again", SOON_S)
        held = self._held()
        if source not in held and len(held) >= SOURCES_MAX:
            raise BusyError(
                f"{counted(len(held), 'source')} came by the API, and something of each is held "
                "or comes in",
                f"use one of them ({', '.join(sorted(held)[:SHOWN])}, ...), or wait until the link "
                "has sent what is held of one",
                RETRY_S,
            )

    async def make(self, source: str) -> str | None:
        """Have a place for this one; the source that lost its own for it, if one did.

        Raises as `check` does, and NotNow when the store's file knows as many as it may, and
        StoreError.
        """
        gone = None
        async with self._turn:
            held = self._held()
            if source not in held and len(held) >= SOURCES_MAX:
                self._check_count(source, held)
                gone = await self._free([one for one in self._names if one in held])
        self.check(source)
        return gone

    async def _free(self, names: list[str]) -> str | None:
        """Have the first of these leave that can; which one that is."""
        self._leaving = {one for one in names if not self._busy(one)}
        try:
            gone = await self._takes.rest([one for one in names if one in self._leaving])
        finally:
            self._leaving = set()
        if gone is not None:
            del self._names[gone]
            self._resting.add(gone)
            log.info("%s gave its place to another source", gone)
        return gone

    def _check_count(self, source: str, held: set[str]) -> None:
        if source not in self._resting and len(held | self._resting) >= NAMES_MAX:
            raise NotNow(  # time does not help
                f"{NAMES_MAX} sources came by the API since this store began, and {source!r} is "
                "none of them",
                "send the recordings of one place as one source, and tell them apart by `name`",
            )

    def _held(self) -> set[str]:
        return set(self._names) - self._configured()
