"""What the watchdog did: kept on this machine for the technician, and sent as records.

Limits  : the last LAST_MAX events here. What the store could not take is tried again each RETRY_S,
          and after a restart; what is beyond LAST_MAX by then is not sent.
Format  : a JSON list of Noted, the oldest first, written whole beside the store.
Recovery: a file that cannot be read is begun anew; the store has what was sent. What was sent just
          before a crash may be sent once more.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent import plain_file
from agent.clock import Clock
from agent.errors import StoreError
from agent.health.watchdog.kept import KeptFile
from agent.health.watchdog.watchdog import Event

log = logging.getLogger("watchdog")
LAST_MAX = 200
RETRY_S = 30.0
FILE_BYTES_MAX = 1 << 20


class Noted(Struct, frozen=True, omit_defaults=True):
    """An event, and when: a wall label in microseconds, and the boot it belongs to.

    `sent`: it is a record in the store.
    """

    at_us: int
    boot: str
    event: Event
    sent: bool = True


class Chronicle:
    """`note` never waits; `file` keeps what was noted, `run` sends it."""

    def __init__(
        self, path: Path, append: Callable[[Sequence[bytes]], Awaitable[object]], clock: Clock
    ) -> None:
        """`append` keeps records, each a JSON body, in the store. Raises StoreError."""
        self.file = KeptFile(path, lambda: msgspec.json.encode(list(self._last)))
        self._append = append
        self._clock = clock
        self._last = deque[Noted](_read(path), LAST_MAX)
        self._unsent = asyncio.Event()
        self._unsent.set()  # the agent before may have left some

    def note(self, event: Event) -> None:
        """Something was done."""
        noted = Noted(int(self._clock.wall() * 1e6), self._clock.boot, event, sent=False)
        self._last.append(noted)
        self.file.changed()
        self._unsent.set()

    def last(self) -> list[Noted]:
        """The newest first."""
        return list(reversed(self._last))

    async def run(self) -> None:
        """Send, for ever; a store that hangs keeps nothing from the file."""
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            if not await self._sent():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._unsent.wait(), RETRY_S)
                self._unsent.set()

    async def _sent(self) -> bool:
        """Send what is not in the store yet; whether all of it is there now."""
        waiting = [one for one in self._last if not one.sent]
        bodies = [msgspec.json.encode(replace(one, sent=True)) for one in waiting]
        if not waiting:
            return True
        try:
            await self._append(bodies)
        except StoreError as error:  # the parts that need the store say so
            log.info("%d events are not sent yet: %s", len(waiting), error)
            return False
        done = {id(one) for one in waiting}
        fresh = [replace(one, sent=True) if id(one) in done else one for one in self._last]
        self._last = deque(fresh, LAST_MAX)
        self.file.changed()
        return True


def _read(path: Path) -> list[Noted]:
    try:
        with plain_file.opened(path) as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=list[Noted])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: begun anew: %s", path, error)
        return []
