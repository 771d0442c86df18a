"""Puts the power profile in force that the governor names, and says which, and why.

Limits: a look each LOOK_S, IDLE_S without profiles. A Jetson's mode that was refused, or did not
come to be, is asked for again after RETRY_S: some modes hold only after a reboot, which is for a
person to order.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

from msgspec import Struct

from agent.clock import Clock
from agent.config import Power as Settings
from agent.config import PowerProfile
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.health.power.governor import Governor, Seen, Verdict
from agent.hours import local_time
from agent.threads import apart

log = logging.getLogger("power")
LOOK_S, RETRY_S = 5.0, 600.0
IDLE_S = 60.0  # between two looks where nothing is to be decided


class PowerShown(Struct, frozen=True):
    """The profile in force (null: none) and why; what the board says of itself (null: nothing).

    `battery_left_ratio` is 1 where a battery is not being discharged. `mode` is a Jetson's power
    mode now, `mode_wanted` that of the profile. `rest` are the domains that take no calls.
    """

    profile: str | None
    why: str
    hottest_c: float | None
    battery_left_ratio: float | None
    mode: int | None
    mode_wanted: int | None
    rest: list[str]


class Board(NamedTuple):
    """What a look at the board brings; all of it may be None."""

    cpu_c: float | None
    battery_left: float | None
    mode: int | None


class Asks(Protocol):
    """Sets a Jetson's power mode; in words, what was done. Raises HoldfastError."""

    async def __call__(self, mode: int) -> str: ...  # noqa: D102


class Power:
    """Looks, for ever."""

    def __init__(
        self,
        settings: Settings,
        look: Callable[[], Board],
        gpu_c: Callable[[], float | None],
        set_mode: Asks,
        rest: Callable[[Mapping[str, str]], None],
        note: Callable[[Verdict], None],
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        """`look` is called in a thread; `gpu_c` is the hottest accelerator's temperature.

        `rest` is told which domains are to take no calls, and why; `note` keeps that another
        profile is in force.
        """
        self._settings = settings
        self._look = look
        self._gpu_c = gpu_c
        self._set_mode = set_mode
        self._rest = rest
        self._note = note
        self._conditions = conditions
        self._clock = clock
        self._governor = Governor(settings)
        self._verdict = Verdict(None)
        self._board = Board(None, None, None)
        self._again_s = 0.0  # when the mode may be asked for again (monotonic)
        self._refused = False  # the last time it was
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Look again and again."""
        while True:
            self._changed.clear()
            await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._settings.profiles else IDLE_S):
                    await self._changed.wait()

    def change(self, settings: Settings) -> None:
        """These hold from now on; which rules held is judged anew."""
        self._settings, self._governor = settings, Governor(settings)
        self._again_s = 0.0
        self._changed.set()

    async def look(self) -> None:
        """Look now, and see to what follows."""
        board = self._board = await apart(self._look)
        now = local_time(self._clock)
        verdict = self._governor.judge(Seen(self._hottest_c, board.battery_left, now))
        if verdict != self._verdict:
            log.info("power profile %s: %s", verdict.profile, verdict.why or "no rule holds")
            if self._verdict.profile or verdict.why:  # that it begins is none
                self._note(verdict)
            self._verdict, self._again_s = verdict, 0.0
        self._tell()
        self._rest(dict.fromkeys(self._profile.rest, self._why))
        await self._have_mode(self._profile.nvpmodel, board.mode)

    def shown(self) -> PowerShown:
        """What holds, by the last look."""
        return PowerShown(
            *self._verdict,
            self._hottest_c,
            self._board.battery_left,
            self._board.mode,
            self._profile.nvpmodel,
            list(self._profile.rest),
        )

    async def state(self) -> PowerShown:
        """The same, as a section of the status."""
        return self.shown()

    @property
    def cpu_c(self) -> float | None:
        """How hot the CPU was at the last look."""
        return self._board.cpu_c

    @property
    def _hottest_c(self) -> float | None:
        known = [one for one in (self._board.cpu_c, self._gpu_c()) if one is not None]
        return max(known, default=None)

    @property
    def _profile(self) -> PowerProfile:
        return self._settings.profiles.get(self._verdict.profile or "", PowerProfile())

    @property
    def _why(self) -> str:
        why = self._verdict.why or "no rule holds"
        return f"power profile {self._verdict.profile} is in force: {why}"

    def _tell(self) -> None:
        if not self._verdict.why:
            self._conditions.clear("power_saving", "power")
            return
        resting = ", ".join(self._profile.rest)
        cause = f"{self._why}{f'; no calls go to {resting}' if resting else ''}"
        todo = "it ends by itself; power.rules says when it holds"
        self._conditions.hold("power_saving", "power", "note", cause, todo)

    async def _have_mode(self, wanted: int | None, mode: int | None) -> None:
        """See that the board is in this mode."""
        if wanted is None or mode == wanted:
            self._conditions.clear("power_mode_unset", "power")
            return
        now_s = self._clock.monotonic()
        if now_s < self._again_s:
            if mode is not None and not self._refused:
                self._tell_unset(f"power mode {wanted} was set, but the board is in {mode}")
            return
        self._again_s = now_s + RETRY_S
        try:
            said = await self._set_mode(wanted)
        except HoldfastError as error:
            self._refused = True
            self._tell_unset(f"power mode {wanted} cannot be set: {error}", error.hint)
        else:
            self._refused = False
            self._conditions.clear("power_mode_unset", "power")
            log.info("power mode %d: %s", wanted, said)

    def _tell_unset(self, cause: str, hint: str = "") -> None:
        todo = hint or "some modes need a reboot; set it by hand: nvpmodel -m"
        self._conditions.hold("power_mode_unset", "power", "warning", cause, todo)
