"""This start of the agent: its cause, what it cost, and safe mode.

In safe mode no model runs, and nobody resets the machine. Store, link, sources of sound and doors
are up: what is accepted stays accepted, and waits to be heard.
"""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.starts import book, budget, causes
from agent.health.starts.book import Book
from agent.health.starts.budget import Account, Limits
from agent.health.starts.causes import Cause, Ended, Evidence, Mark, Run
from agent.health.watchdog.watchdog import Event
from agent.inference.domains.hold import Hold

log = logging.getLogger("watchdog")
KEPT_S = 2.0  # for a disk that writes at all
LOOK_S = 5.0
ERROR_CHARS_MAX = 300


class Places(NamedTuple):
    """The files: its own, and where it finds what the last run and the kernel left."""

    book: Path
    snapshot: Path
    hung: Path
    panics: Path = Path("/var/lib/systemd/pstore")
    uncounted: Path | None = None  # how many starts the unit has counted (book.counted)


class SafeShown(Struct, frozen=True):
    """Safe mode: why, and after how many seconds without a crash it is left."""

    why: str
    leaves_in_s: float


class StartShown(Struct, frozen=True):
    """Why the agent began, and how often that may yet be. `at_us` is a wall label.

    `starts` are those that are known, by cause.
    """

    cause: Cause
    why: str
    at_us: int
    starts: dict[Cause, int]
    resets_left: int
    resets_per_day_max: int
    safe_mode: SafeShown | None


class Starts:
    """An async context manager, to be entered before all others: what ends them is noted.

    `run` leaves safe mode when its time has come.
    """

    def __init__(
        self,
        places: Places,
        hardware: Callable[[], Collection[str] | None],
        limits: Limits,
        hold: Hold,
        note: Callable[[Event], None],
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        """Judges from what is there, and changes nothing yet.

        `hardware` is what reset the machine, as Evidence has it; `hold` keeps models from being
        started; `note` keeps an event.
        """
        self._places = places
        self._limits = limits
        self._hold = hold
        self._note = note
        self._conditions = conditions
        self._clock = clock
        self._writing = threading.Lock()
        self._lock: int | None = None  # held as long as this process lives
        self._second = self._unkept = self._counted = False
        self._began_s = clock.monotonic()
        self._at_us = int(clock.wall() * 1e6)
        self._first = not os.path.lexists(places.book)  # nothing had ended before
        former = book.read(places.book, places.snapshot)
        panics = book.panics(places.panics)
        self._ran_s = book.running_s(former, clock.boot, self._began_s)
        self.verdict = causes.judge(
            Evidence(
                *(clock.boot, former.run if former else None, hardware()),
                hung=_has_content(places.hung),
                panicked=former is not None and not set(panics) <= set(former.panics),
                restarts=_restarts(former),
            )
        )
        self._cost = budget.cost(self.verdict, former.run if former else None)
        account, counts = (former.account, former.starts) if former else (Account(), {})
        account = budget.after_start(account, self._cost, limits, self._ran_s)
        counts = {**counts, self.verdict.cause: counts.get(self.verdict.cause, 0) + 1}
        run = Run(clock.boot, self._began_s, self._began_s)
        self._book = Book(run, self._ran_s, account, counts, panics)

    @property
    def safe(self) -> str:
        """Why it is in safe mode; empty: it is not."""
        safe = self._book.account.safe
        return safe.why if safe else ""

    @property
    def counts(self) -> dict[Cause, int]:
        """How often the agent began, by cause."""
        return {cause: self._book.starts.get(cause, 0) for cause in Cause}

    @property
    def pause_s(self) -> float:
        """How long this start is to wait: systemd is not to reboot for what resets do not mend.

        One that costs nothing does not wait.
        """
        looping = budget.loops(self._book.account, self._limits, self._running_s())
        waits = self._cost and self.safe and looping and self.resets_left == 0
        return self._limits.pause_s if waits else 0.0

    @property
    def uncounted_pause_s(self) -> float:
        """How long to wait before it ends with an error: the next start would know nothing of it,
        and of those that nobody counts systemd is not to see too many.
        """
        return self._limits.pause_s if self._unkept else 0.0

    @property
    def resets_left(self) -> int:
        """How many resets there may still be within the day."""
        return budget.resets_left(self._book.account, self._limits, self._running_s())

    def why_no_reset(self) -> str:
        """Why the machine may not be rebooted or reset now; empty: it may.

        Nobody does it who cannot count it.
        """
        if self.safe:
            return f"the agent is in safe mode: {self.safe}"
        if self._unkept:
            return f"{self._places.book} cannot be written, so that nobody could count it"
        if self.resets_left == 0:
            return f"all {self._limits.resets_max} resets of a day of running are spent"
        return ""

    def shown(self) -> StartShown:
        """For people and programs."""
        now_s = self._running_s()
        left_s = budget.leaves_in_s(self._book.account, self._limits, now_s)
        safe = None if left_s is None else SafeShown(self.safe, round(left_s, 1))
        return StartShown(
            *(self.verdict.cause, self.verdict.why, self._at_us, self.counts),
            *(self.resets_left, self._limits.resets_max, safe),
        )

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error and not self._second and not self._book.run.ended:
            await self.ends("", _said(error))

    def begin(self) -> None:
        """Have this start written down, before anything that may end it."""
        cause, why, _ = self.verdict
        level = logging.WARNING if self._cost else logging.INFO
        log.log(level, "why it began: %s: %s", cause, why)
        try:
            self._lock = book.locked(self._places.book)
            if self._lock is None:
                self._second = True  # the store says so, and ends this
                return
            self._write()
        except OSError as error:
            self._tell(str(error))
        if not self._first:
            self._note(Event("agent", "start", why, f"it began; the cause: {cause}"))
        if self.safe:
            self._note(Event("agent", "safe mode", self.safe, "no model runs"))
        self._tell_safe()

    async def ends(self, ended: Ended, why: str = "") -> None:
        """It ends, and is known to: because it was told to, to begin anew, or with an error."""
        self._set(ended=ended, why=why)
        await self._keep()

    async def mark(self, cause: Cause, why: str) -> None:
        """The machine is about to be rebooted or reset: the next start has this cause, for MARK_S.

        Whether it stands written down, `why_no_reset` tells.
        """
        self._set(mark=Mark(cause, why, self._clock.monotonic()))
        await self._keep()

    def change(self, limits: Limits) -> None:
        """These hold from now on."""
        self._limits = limits

    async def resume(self) -> None:
        """A person says that all is well: out of safe mode, with all budgets anew."""
        await self._leave(budget.resumed(self._running_s()), "somebody resumed it")

    async def run(self) -> None:
        """Leave safe mode when its time has come; write what could not be written. For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """What `run` does each time."""
        now_s = self._running_s()
        if budget.leaves_in_s(self._book.account, self._limits, now_s) == 0:
            await self._leave(budget.left(self._book.account, now_s), "it went well for so long")
        elif self._unkept and not self._writing.locked():  # no more threads for a disk that hangs
            await self._keep()

    async def _leave(self, account: Account, why: str) -> None:
        if self.safe:
            log.warning("safe mode is over: %s", why)
            self._note(Event("agent", "resume", why, "models run; all budgets begin anew"))
        self._book = replace(self._book, account=account)
        self._tell_safe()
        await self._keep()

    def _running_s(self) -> float:
        return self._ran_s + max(0.0, self._clock.monotonic() - self._began_s)

    def _set(self, **changes: object) -> None:
        self._book = replace(self._book, run=replace(self._book.run, **changes))

    async def _keep(self) -> None:
        """Write it, in a thread, for the disk may hang."""
        try:
            async with asyncio.timeout(KEPT_S):
                await asyncio.to_thread(self._write)
        except TimeoutError:
            self._tell(f"the disk did not take it within {KEPT_S:.0f} s")
        except OSError as error:
            self._tell(str(error))
        else:
            self._tell("")

    def _write(self) -> None:
        """As it is now; one after the other, whoever asks. Raises OSError."""
        with self._writing:
            self._lock = self._lock or book.locked(self._places.book)
            if self._lock is None:
                raise OSError(errno.EBUSY, "another agent has it")
            alive_s = self._clock.monotonic()
            run = replace(self._book.run, alive_s=max(alive_s, self._began_s))
            book.write(self._places.book, replace(self._book, run=run, ran_s=self._running_s()))
            if self._places.uncounted and not self._counted:
                self._counted = book.counted(self._places.uncounted)

    def _tell(self, fault: str) -> None:
        """Whether the book is kept, and if not, why."""
        self._unkept = bool(fault)
        if not fault:
            self._conditions.clear("starts_unwritten", "starts")
            return
        self._conditions.hold(
            *("starts_unwritten", "starts", "warning"),
            f"{self._places.book}: {fault}: the next start knows nothing of this one, and nobody "
            "resets the machine",
            "check room and rights on the disk of the store",
        )

    def _tell_safe(self) -> None:
        if not self.safe:
            self._hold.lift()
            self._conditions.clear("safe_mode", "agent")
            return
        self._hold.set(f"the agent is in safe mode: {self.safe}", "holdfast watchdog resume")
        hours = budget.stay_s(self._book.account, self._limits) / 3600
        self._conditions.hold(
            *("safe_mode", "agent", "critical"),
            f"{self.safe}; no model runs, all else goes on: sound is kept, and waits",
            "mend what holdfast watchdog history names, then: holdfast watchdog resume; it also "
            f"ends by itself after {hours:.1f} h without a crash",
        )


def _said(error: BaseException) -> str:
    """Of a group, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _restarts(former: Book | None) -> int:
    """How often the agent had begun anew within systemd's StartLimit, when it ended."""
    if former is None:
        return 0
    return budget.within(former.account, "restart", budget.STARTLIMIT_S, former.ran_s)
