"""A new version proves itself, or goes back by itself.

It is confirmed once it has been well for SETTLE_S without a break: all that must move moves, no
condition speaks against it that did not hold before (versions/judge.py), and the link is up if it
was. What is not so within `confirm_s` of its start goes back. What is so broken that it never comes
here is seen to from outside: provisioning/slots.sh counts its starts, and gives it an hour.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.host.root.forms import Slots as SlotsOrder
from agent.host.slots.layout import Slots
from agent.updates.slots.record import Before, Kept, Record
from agent.updates.slots.update import Orders

log = logging.getLogger("update")
LOOK_S = 2.0
SETTLE_S = 20.0  # nine ticks of the watchdog
AGAIN_S = 60.0  # where root does not do it


class Trial:
    """`run` sees to it that the version on trial, if this is one, is confirmed or left."""

    def __init__(
        self,
        slots: Slots | None,
        root: Orders,
        kept: Kept,
        lacks: Callable[[Before], str],
        restart: Callable[[str], None],
        conditions: Conditions,
        clock: Clock,
        version: str,
        confirm_s: float,
    ) -> None:
        """`lacks` says what is not as it should be, compared with before; empty: nothing."""
        self._slots, self._root, self._kept = slots, root, kept
        self._lacks, self._restart = lacks, restart
        self._conditions, self._clock = conditions, clock
        self._version, self._confirm_s = version, confirm_s

    async def run(self) -> None:
        """Until it is decided; at once where nothing is on trial."""
        if self._slots is None:
            return
        await self._settle(self._slots)
        trial = self._slots.trial()
        if trial is None or trial.slot != self._slots.running:
            return
        self._conditions.hold(
            *("agent_on_trial", self._version, "note"),
            f"version {self._version} began, and has yet to prove itself (start {trial.starts})",
            f"wait: it is confirmed, or the former version is back within {self._confirm_s:g} s",
        )
        if self._kept.now.slot != trial.slot:  # nothing is known of it
            known = Record(version=self._version, slot=trial.slot)
            await self._written(self._kept.begin(known, "switched"))
        elif self._kept.now.state != "switched":  # killed before root went back; or by hand
            await self._written(self._kept.reach("switched", "it is on trial once more"))
        if why := await self._proved():
            await self._back(why)

    async def _settle(self, slots: Slots) -> None:
        """Bring the record up to what has become of the last switch, and tell it."""
        await self._written(self._kept.settle(slots, self._version))
        record = self._kept.now
        if record.state == "back" and slots.running != record.slot:
            self._conditions.hold(
                *("agent_went_back", record.version, "warning"),
                f"version {record.version} did not prove itself: {record.why}; version "
                f"{self._version} runs",
                "have it mended; the next agent.update, or agent.rollback, ends this",
            )

    async def _proved(self) -> str:
        """Empty once it is confirmed; else what was wrong with it at the end of its time."""
        began_s, well_s, why = self._clock.monotonic(), 0.0, ""
        while self._clock.monotonic() - began_s < self._confirm_s:
            why = self._lacks(self._kept.now.before)
            if why:
                well_s = 0.0
            elif not well_s:
                well_s = self._clock.monotonic()
            elif self._clock.monotonic() - well_s >= SETTLE_S:
                why = await self._confirmed()
                if not why:
                    return ""
            await asyncio.sleep(LOOK_S)
        return (
            f"within {self._confirm_s:g} s of its start: {why or 'it was not well for long enough'}"
        )

    async def _confirmed(self) -> str:
        """Have root make it stay; empty: it does."""
        try:
            await self._root.ask(SlotsOrder(act="confirm"))
        except HoldfastError as error:
            log.warning("it cannot be confirmed: %s", error)
            return str(error)
        assert self._slots
        await self._written(self._kept.settle(self._slots, self._version))
        self._conditions.clear("agent_on_trial", self._version)
        return ""

    async def _back(self, why: str) -> None:
        """To the former version, as often as it takes."""
        log.error("version %s goes back: %s", self._version, why)
        await self._written(self._kept.reach("back", why))
        while True:
            try:
                await self._root.ask(SlotsOrder(act="back"))
            except HoldfastError as error:
                log.warning("it cannot go back yet: %s", error)
                await asyncio.sleep(AGAIN_S)
            else:
                self._restart(f"version {self._version} did not prove itself: {why}")
                return

    async def _written(self, writing: Awaitable[None]) -> None:
        """What root has is what counts: a record that cannot be written is told, and made good at
        the next start."""
        try:
            await writing
        except HoldfastError as error:
            log.warning("%s; %s", error, error.hint)
