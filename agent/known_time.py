"""The least that is known of the time of day, where no clock can be believed.

A synchronised clock is believed. Without one the last time that was known stands in, and what went
by since within the same boot: it is that late at least, however wrong the machine's clock is. So
what has certainly expired can be told from what may have, in 1970 as in a year to come.

Limits  : one small file, written each KEPT_S while the clock is synchronised.
Format  : JSON, Noted, replaced as a whole and fsynced.
Recovery: without the file, or with one that cannot be read, nothing is known, and nothing counts as
          expired until the clock is synchronised. A time that was wrong is mended by the next one.
"""

import asyncio
import logging
import math
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import whole_file
from agent.clock import Clock
from agent.threads import apart

log = logging.getLogger("clock")
KEPT_S = 3600.0
LOOK_S = 60.0
_FILE_BYTES_MAX = 4096


class Noted(Struct, frozen=True):
    """At `mono_s` of the boot `boot` it was `utc_s`, by a clock that was synchronised."""

    utc_s: float
    boot: str
    mono_s: float


class KnownTime:
    """Any thread may ask it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Reads `path`, if it is there."""
        self._path = path
        self._clock = clock
        self._noted = _read(path)
        self._kept_at = -math.inf  # monotonic

    @property
    def sure(self) -> bool:
        """Whether the clock itself is believed."""
        return self._clock.synchronised()

    def least_s(self) -> float:
        """Seconds since 1970, UTC: now, where the clock is believed; else what it is at least."""
        if self.sure:
            return self._clock.wall()
        noted = self._noted
        if noted is None:
            return 0.0
        gone_s = self._clock.monotonic() - noted.mono_s if noted.boot == self._clock.boot else 0.0
        return noted.utc_s + max(gone_s, 0.0)

    def said(self) -> str:
        """That time in words, and where it is from."""
        if self.sure:
            return f"{self._date()} by this machine's clock"
        if self._noted is None:
            return "not known: the clock is not synchronised, and never was"
        return f"{self._date()} or later: the clock is not synchronised, so much is known"

    async def run(self) -> None:
        """Keep the time, for ever."""
        failed = False
        while True:
            try:
                await apart(self.note)
            except OSError as error:
                if not failed:  # of the disk itself others tell
                    log.warning("%s: the time cannot be kept: %s", self._path, error)
                failed = True
            else:
                failed = False
            await asyncio.sleep(LOOK_S)

    def note(self) -> None:
        """Keep the time, if the clock is believed and it was not kept for a while. It blocks.

        Raises OSError.
        """
        now_s = self._clock.monotonic()
        if not self.sure or now_s - self._kept_at < KEPT_S:
            return
        self._noted = Noted(self._clock.wall(), self._clock.boot, now_s)
        whole_file.replace(self._path, msgspec.json.encode(self._noted))
        self._kept_at = now_s

    def _date(self) -> str:
        return day(self.least_s())


def day(utc_s: float) -> str:
    """A time as people read it, also one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(utc_s, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{utc_s:.0f} s after 1970"


def _read(path: Path) -> Noted | None:
    try:
        with path.open("rb") as file:
            noted = msgspec.json.decode(file.read(_FILE_BYTES_MAX), type=Noted)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s: the last known time cannot be read: %s", path, error)
        return None
    return noted if math.isfinite(noted.utc_s) and math.isfinite(noted.mono_s) else None
