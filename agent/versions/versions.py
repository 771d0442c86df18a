"""The configuration while the agent runs: applied, watched while it is on trial, taken back.

A change is chosen in the book first (kept.py), and done then: hot, section by section, where all of
them allow that, else by a restart of the agent, which begins on what was chosen. So a kill at any
moment leads to an agent that runs: on the new version, on trial, or on the former one.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from agent.changes import Changes
from agent.clock import Clock
from agent.config import Config
from agent.errors import HoldfastError, NotNow, StoreFull
from agent.masked import masked
from agent.tasks import through
from agent.versions import shown
from agent.versions import wish as wishes
from agent.versions.file import File
from agent.versions.folder import digest
from agent.versions.force import Force
from agent.versions.forms import Trial, Version
from agent.versions.judge import Seen
from agent.versions.kept import APPLIES_MAX, ROLLBACKS_MAX
from agent.versions.notices import Notices
from agent.versions.plan import Hot, Plan, check_pinned
from agent.versions.shown import ConfigApplied, ConfigShown, DocumentShown
from agent.versions.start import Begun
from agent.versions.trials import Trials
from agent.versions.wish import Wish

log = logging.getLogger("config")
LOOK_S = 0.5


class Versions:
    """`run` watches, for ever."""

    def __init__(
        self,
        begun: Begun,
        hot: Mapping[str, Hot],
        seen: Callable[[], Seen],
        restart: Callable[[str], None],
        notices: Notices,
        clock: Clock,
    ) -> None:
        """`hot` has the sections that can be changed now; `restart` ends the agent in order, so
        that it begins anew, and says why."""
        self._kept = begun.kept
        self._service = begun.service
        self._notices = notices
        self._force = Force(begun.settings, begun.number, hot)
        self._trials = Trials(self._kept, self._force, seen, restart, notices, clock)
        self._changing = asyncio.Lock()
        self._asked = False  # what the file says now
        self._read: tuple[int, dict[str, Any]] | None = None  # the live version, read last
        notices.began(begun.notes)

    @property
    def changes(self) -> Changes:
        """Of each step."""
        return self._trials.changes

    async def run(self) -> None:
        """The agent is up: watch what is on trial, for ever."""
        async with self._changing:
            if self._trials.holds:
                await self._trials.come_into_force()
        self._trials.tell()
        while True:
            await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._kept.book.trial else None):
                    await self._trials.woken.wait()
            self._trials.woken.clear()
            if self._asked:
                self._asked = False
                await self._look_again()

    def ask(self) -> None:
        """Have `again` done, soon; how it went, the log and a condition say."""
        self._asked = True
        self._trials.woken.set()

    async def _look_again(self) -> None:
        try:
            await self.again()
        except HoldfastError as error:
            self._notices.not_applied(error)

    async def look(self) -> None:
        """What `run` does each time."""
        async with self._changing:
            await self._trials.look()

    async def plan(self, wish: Wish) -> ConfigApplied:
        """What an order would do, checked as a whole. Raises HoldfastError."""
        read = await asyncio.to_thread(wishes.read, wish, self._kept, self._force.settings)
        book, found = self._kept.book, self._force.plan(read.settings)
        if read.same:
            return ConfigApplied(book.live, "same")
        return ConfigApplied(
            book.next, "dry_run", list(found.changed), dict(found.restart), read.lost
        )

    async def apply(self, wish: Wish) -> ConfigApplied:
        """Keep it as a new version, and have it in force, on trial.

        Raises HoldfastError, and then all is as it was. Where it takes a restart, that begins now.
        """
        return await through(self._apply(wish))

    async def _apply(self, wish: Wish) -> ConfigApplied:
        async with self._changing:
            self._check_ending()
            if self._kept.book.trial:
                raise NotNow(
                    f"version {self._kept.book.live} is on trial",
                    "confirm it, roll it back, or wait: holdfast config versions",
                )
            read = await asyncio.to_thread(wishes.read, wish, self._kept, self._force.settings)
            if read.same:
                return ConfigApplied(self._kept.book.live, "same")
            found = self._force.plan(read.settings)
            if found.restart:
                await self.count_restart(APPLIES_MAX)
            version = Version(0, "", 0, wish.origin, wish.who, wish.why)
            trial = self._trials.of(wish)
            change = found.change(read.lost)
            add = partial(self._kept.add, read.document, version, trial, wish.order, change)
            number = await asyncio.to_thread(add)
            log.info("version %d is chosen; it changes %s", number, ", ".join(found.changed))
            self._trials.tell()
            why = f"version {number} of its configuration was applied"
            await self._have(read.settings, found, why)
            return self._applied(number, found, read.lost)

    async def roll_back(
        self, number: int | None, order: str = "", why: str = "", of: str = ""
    ) -> ConfigApplied:
        """Have a version that is kept in force, by default the former one; a trial ends with that.

        `of`: nothing is done unless the version is live that this order has chosen; the former one
        is what was confirmed before that. Raises HoldfastError. Where it takes a restart, that
        begins now.
        """
        return await through(self._roll_back(number, order, why, of))

    async def _roll_back(self, number: int | None, order: str, why: str, of: str) -> ConfigApplied:
        async with self._changing:
            self._check_ending()
            book = self._kept.book
            if of and book.chosen_by(of) != book.live:
                word = f"nothing was done: no version that {of} has chosen is live"
                return ConfigApplied(book.live, "same", why=word)
            number = book.previous(of) if number is None else number
            if number == book.live and not book.trial:
                return ConfigApplied(number, "same")
            settings = await asyncio.to_thread(self._kept.settings, number)
            check_pinned(self._force.settings, settings, self._kept.file)
            found = self._force.plan(settings)
            if found.restart:
                await self.count_restart(ROLLBACKS_MAX)
            trial = Trial(book.confirmed, "start", order=order)
            choose = partial(self._kept.choose, number, trial, order, why, found.change())
            await asyncio.to_thread(choose)
            log.info("back to version %d; that changes %s", number, ", ".join(found.changed))
            self._trials.tell()
            await self._have(settings, found, f"back to version {number} of its configuration")
            if self._trials.holds:
                await self._trials.confirm("the agent runs on it")
            return self._applied(number, found)

    async def confirm(self, number: int | None = None, why: str = "") -> ConfigShown:
        """The live version stays, and what was taken back before is known. Raises HoldfastError."""
        async with self._changing:
            self._check_ending()
            book = self._kept.book
            if number not in (None, book.live):
                raise NotNow(f"{book.live} is live, not {number}", "holdfast config versions")
            if book.trial and not self._trials.watched:
                raise NotNow(f"version {book.live} is not in force yet", "wait until it is")
            if book.trial or book.taken_back:
                word = why or "somebody confirmed it"
                await through(asyncio.to_thread(self._kept.confirm, word))
                self._trials.tell()
        return self.shown()

    async def again(self) -> dict[str, str]:
        """Have what the file of --config says, where it was changed, as far as it takes no restart.

        What was done to which domain. Raises HoldfastError; the rest is done then all the same.
        """
        return await through(self._again())

    async def _again(self) -> dict[str, str]:
        async with self._changing:
            self._check_ending()
            settings = await asyncio.to_thread(self._settings_again)
            found, book = self._force.plan(settings), self._kept.book
            self._trials.waits = dict(found.restart)
            self._trials.tell()
            done = await self._force.change_some(settings, found)
            if not found.restart and self._force.number != book.live and self._kept.folder:
                await self._trials.come_into_force()
            self._trials.tell()
            return done if isinstance(done, dict) else {}

    def _settings_again(self) -> Config:
        """Of the live version, which is the file where that was changed. Raises HoldfastError."""
        file = File(self._kept.file)
        try:
            file.check()
            if file.adopt(self._kept, service=self._service):
                self._notices.file_is_usable()
        except StoreFull as error:
            self._notices.unwritten(error)
            return file.settings()
        return self._kept.settings(self._kept.book.live)

    def shown(self) -> ConfigShown:
        """For people and programs."""
        book = self._kept.book
        steps, file = list(reversed(book.steps)), str(self._kept.file)
        return ConfigShown(
            *(
                book.live,
                book.confirmed,
                self._force.number,
                file,
                self._trials.waits,
                self._trials.shown(),
            ),
            *(book.taken_back, shown.versions(book), steps),
        )

    async def document(self, number: int | None = None) -> DocumentShown:
        """A version as it is written, by default the live one. Raises HoldfastError."""
        book = self._kept.book
        number = book.live if number is None else number
        found = await asyncio.to_thread(self._kept.document, number)
        return DocumentShown(number, digest(found), masked(found))

    async def live(self) -> tuple[int, dict[str, Any]]:
        """The live version, and what it says, as data. Raises HoldfastError."""
        number = self._kept.book.live
        if self._read is None or self._read[0] != number:
            self._read = number, await asyncio.to_thread(self._kept.data, number)
        return self._read

    def knows(self, order: str) -> bool:
        """Whether an order has chosen a version, before a restart too."""
        return self._kept.book.began(order)

    async def outcome(self, order: str) -> ConfigApplied:
        """What became of the version that an order has chosen; waits until that is known.

        While the agent is about to begin anew there is no end of it: the next one tells.
        """
        while True:
            number = self._trials.changes.number
            async with self._changing:
                step = self._kept.book.ended(order)
            if step and not self._trials.ending:
                return shown.applied(self._kept.book, step)
            await self._trials.changes.after(number)

    async def count_restart(self, most: int = APPLIES_MAX) -> None:
        """An ordered restart of the agent is about to begin, for whatever reason.

        Raises NotNow: of a service there were too many, and systemd would reboot the machine for
        more. By hand nobody does.
        """
        await asyncio.to_thread(self._kept.restarts, most if self._service else None)

    def _check_ending(self) -> None:
        if self._trials.ending:
            raise NotNow("the agent is about to begin anew", "ask the one that comes")

    async def _have(self, settings: Config, found: Plan, why: str) -> None:
        """In force what was chosen. Raises HoldfastError where it was taken back."""
        if found.restart:
            self._trials.begin_anew(why)
            return
        try:
            await self._force.change(settings, found)
        except HoldfastError as error:
            await asyncio.to_thread(self._kept.take_back, str(error))
            self._trials.tell()
            raise
        await self._trials.come_into_force()

    def _applied(self, number: int, found: Plan, lost: str = "") -> ConfigApplied:
        """What is known right after it was done."""
        done = ConfigApplied(number, "trial", list(found.changed), dict(found.restart), lost)
        step = self._kept.book.steps[-1]
        if self._kept.book.trial or step.state != "confirmed":
            return done
        return replace(done, state="confirmed", why=step.why)
