"""What befalls the store is said: bounds that take records, files and records that were damaged."""

import asyncio
from collections.abc import Awaitable, Callable

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.records import Balance
from agent.store.quarantine import PutAside
from agent.store.scrub import Found
from agent.words import counted

LOOK_S = 5.0
FAILING = "the disk is failing: check it with smartctl or mmc; the rest is untouched"
CALM_S = 300.0  # without one more record given up, after which it is over
TOLD: dict[str, tuple[Name, str, str]] = {
    "evicted": (
        "store_evicting",
        "given up for want of room",
        "bring the link back, raise store.bytes_max or the stream's, or lower what is kept",
    ),
    "expired": (
        "store_expiring",
        "given up because of age",
        "bring the link back, or raise the rule's age_s_max",
    ),
}


class Storage:
    """Watches the ledger for what bounds took, and says what was put aside and what was found."""

    def __init__(
        self,
        balances: Callable[[], Awaitable[dict[str, Balance]]],
        aside: Callable[[], Awaitable[list[PutAside]]],
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self._balances = balances
        self._aside = aside
        self._told: set[str] = set()  # files that lie aside
        self._conditions = conditions
        self._clock = clock
        self._seen: dict[tuple[str, str], int] = {}  # (stream, reason): records
        self._damaged: set[str] = set()  # streams
        self._at: dict[tuple[str, str], float] = {}  # when there were more, monotonic

    async def run(self) -> None:
        """Look every LOOK_S, for ever; what was given up before the start counts as seen."""
        first = True
        while True:
            try:
                self.look(await self._balances(), first=first)
                self.tell(await self._aside())
                first = False
            except StoreError:  # the parts that need the store say so
                pass
            await asyncio.sleep(LOOK_S)

    def tell(self, aside: list[PutAside]) -> None:
        """A condition for each damaged file, until somebody has looked at it and removed it."""
        for one in aside:
            more = "" if one.exact else " at least"
            saved = "being saved, so far" if one.state != "done" else "saved from it:"
            self._conditions.hold(
                "store_quarantined",
                one.name,
                "warning",
                f"{one.cause}; {saved} {counted(one.saved, 'record')}, lost{more}: {one.lost}",
                "look at the disk's health; copy the file if somebody should look at it, then "
                "remove it",
            )
        for name in self._told - {one.name for one in aside}:
            self._conditions.clear("store_quarantined", name)
        self._told = {one.name for one in aside}

    def look(self, ledger: dict[str, Balance], *, first: bool = False) -> None:
        """Compare the ledger with the last one."""
        now = self._clock.monotonic()
        for stream, balance in ledger.items():
            for reason, (name, cause, remedy) in TOLD.items():
                key, count = (stream, reason), balance.dropped.get(reason, 0)
                more = count - self._seen.get(key, 0)
                self._seen[key] = count
                if more and not first:
                    self._at[key] = now
                    said = f"{counted(count, 'record was', 'records were')} {cause} so far"
                    self._conditions.hold(name, stream, "warning", said, remedy)
                elif key in self._at and now - self._at[key] > CALM_S:
                    del self._at[key]
                    self._conditions.clear(name, stream)

    def tell_damage(self, found: dict[str, Found]) -> None:
        """What the scrub found, by stream; it is over for those that are no longer among them."""
        for stream in self._damaged - found.keys():
            self._conditions.clear("store_damaged", stream)
        self._damaged = set(found)
        for stream, one in found.items():
            self._conditions.hold("store_damaged", stream, "warning", _damage(one), FAILING)


def _damage(found: Found) -> str:
    what = counted(found.count, "record was", "records were")
    seqs = ", ".join(f"#{seq}" for seq in found.seqs)
    more = f" and {found.count - len(found.seqs)} more" if found.count > len(found.seqs) else ""
    said = f"{what} damaged on the disk: {seqs}{more}" if found.count else ""
    return "; ".join(filter(None, [said, found.error]))
