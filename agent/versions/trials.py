"""What is on trial: in force, watched, confirmed or taken back."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from agent.changes import Changes
from agent.clock import Clock
from agent.config import Config
from agent.errors import HoldfastError, StoreFull
from agent.tasks import through
from agent.versions.force import Force
from agent.versions.forms import Trial
from agent.versions.judge import Seen, counting, faults, judge
from agent.versions.kept import Kept
from agent.versions.notices import Notices
from agent.versions.plan import Plan
from agent.versions.shown import TrialShown
from agent.versions.wish import Wish

log = logging.getLogger("config")


class Trials:
    """One after the other; whoever calls sees to it that nobody changes anything meanwhile.

    `changes` tells of each step, `woken` that there is something to watch. `waits` is what the live
    version changes at the next start; `ending`: the agent is about to begin anew.
    """

    def __init__(
        self,
        kept: Kept,
        force: Force,
        seen: Callable[[], Seen],
        restart: Callable[[str], None],
        notices: Notices,
        clock: Clock,
    ) -> None:
        self.changes = Changes()
        self.woken = asyncio.Event()
        self.waits: dict[str, str] = {}
        self.ending = False
        self._kept = kept
        self._force = force
        self._seen = seen
        self._restart = restart
        self._notices = notices
        self._clock = clock
        self._since_s: float | None = None  # when what is on trial came into force
        self._owed = ""  # why a version was taken back, as long as that cannot be written

    @property
    def watched(self) -> bool:
        """Whether a version on trial is in force."""
        return self.holds and self._since_s is not None

    def begin_anew(self, why: str) -> None:
        """The agent ends in order, and the next one is on what is live."""
        self.ending = True
        self._restart(why)

    @property
    def holds(self) -> bool:
        """Whether what is on trial is what is in force."""
        return self._kept.book.trial is not None and self._force.number == self._kept.book.live

    def of(self, wish: Wish) -> Trial:
        """One that begins now, with what holds before it."""
        seen, former = self._seen(), self._kept.book.confirmed
        held = tuple((one.name, one.subject) for one in seen.conditions if counting(one))
        up = seen.link_s is not None
        return Trial(former, wish.confirm, wish.confirm_s, wish.order, up, held)

    async def come_into_force(self) -> None:
        """All of the live version holds from now on."""
        self._force.number, self.waits = self._kept.book.live, {}
        self._since_s = self._clock.monotonic()
        self.woken.set()
        try:
            await asyncio.to_thread(self._kept.in_force)
        except StoreFull as error:
            self._notices.unwritten(error)
        self.tell()

    async def confirm(self, why: str) -> None:
        """It stays. What cannot be written is tried again at the next look."""
        try:
            await asyncio.to_thread(self._kept.confirm, why)
        except StoreFull as error:
            self._notices.unwritten(error)
            return
        self._notices.written()
        log.info("version %d of the configuration stays: %s", self._force.number, why)
        self.tell()

    async def look(self) -> None:
        """Judge what is on trial, and do what follows."""
        trial = self._kept.book.trial
        if self._owed:
            await self._write_owed()
        if trial is None or self._since_s is None or not self.holds or self.ending:
            return
        elapsed_s = self._clock.monotonic() - self._since_s
        word, why = judge(trial, self._seen(), elapsed_s)
        if word == "confirm":
            await self.confirm(why)
        elif word == "take back":
            await through(self._take_back(why))

    async def _take_back(self, why: str) -> None:
        """By itself. What cannot be written down is done all the same."""
        log.warning("version %d of the configuration is taken back: %s", self._force.number, why)
        try:
            number, settings = await self._former(why)
        except HoldfastError as error:
            await self.confirm(f"there is none to go back to: {error}")
            return
        found = self._force.plan(settings)
        self.ending = bool(found.restart) or not await self._is_changed(settings, found)
        self._force.number = number
        self.tell()
        if self.ending:
            with suppress(StoreFull):  # it is counted as far as it can be
                await asyncio.to_thread(self._kept.restarts, None)
            self._restart(f"version {number} of its configuration comes back")

    async def _former(self, why: str) -> tuple[int, Config]:
        """What comes back, written down if that can be. Raises HoldfastError: there is none."""
        try:
            return await asyncio.to_thread(self._kept.take_back, why)
        except StoreFull as error:
            self._notices.unwritten(error)
            self._owed = why
            return await asyncio.to_thread(self._kept.usable, self._kept.book.confirmed)

    async def _write_owed(self) -> None:
        if self.holds or not self._kept.book.trial:  # somebody has ordered another meanwhile
            self._owed = ""
            return
        with suppress(HoldfastError):
            await asyncio.to_thread(self._kept.take_back, self._owed)
            self._owed = ""
            self._notices.written()
            self.tell()

    async def _is_changed(self, settings: Config, found: Plan) -> bool:
        """Whether the way back takes no restart after all."""
        try:
            await self._force.change(settings, found)
        except HoldfastError as error:
            log.warning("the way back takes a restart: %s", error)
            return False
        return True

    def shown(self) -> TrialShown | None:
        """For people and programs."""
        trial = self._kept.book.trial
        if trial is None:
            return None
        left_s, wrong = None, list[str]()
        if self._since_s is not None and self.holds:
            gone_s = self._clock.monotonic() - self._since_s
            left_s = round(max(0.0, trial.confirm_s - gone_s), 1)
            wrong = faults(trial, self._seen(), gone_s)
        return TrialShown(trial.former, trial.confirm, trial.confirm_s, left_s, trial.starts, wrong)

    def tell(self) -> None:
        """The book has changed."""
        self._notices.tell(self._kept.book, self.waits, self._kept.file)
        self.changes.tell()
