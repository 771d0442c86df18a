"""Whether the store's disk is the one that was there before: another one is not taken in silence.

An empty disk, or one of another device, at the mount point is a store that opens well, under an
epoch of its own. That the former one held records, nothing on it can tell.

Limits  : one small file on the system's disk, read every LOOK_S, written when the epoch changes.
Format  : JSON, Known, replaced as a whole and fsynced.
Recovery: without the file, or with one that cannot be read (it is said), the store that is there
          counts as the one that should be.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import plain_file, whole_file
from agent.errors import StoreError
from agent.health.conditions import Conditions

log = logging.getLogger("store")
LOOK_S = 10.0
FILE_BYTES_MAX = 65_536


class Known(Struct, frozen=True):
    """The epoch of the store at a path of the configuration."""

    path: str
    epoch: str


class SameStore:
    """`run` looks, for ever."""

    def __init__(
        self,
        file: Path,
        path: str,
        epoch: Callable[[], str],
        epochs: Callable[[], Awaitable[set[str] | None]],
        conditions: Conditions,
    ) -> None:
        """`file` lies on another disk than the store at `path`.

        `epochs` are all that the store knows of: its own, and those of damaged files that were put
        aside on the same disk; None: one of those does not tell its own. Raises StoreError.
        """
        self._file = file
        self._path = path
        self._epoch = epoch
        self._epochs = epochs
        self._conditions = conditions
        self._unwritten = ""

    async def run(self) -> None:
        """Look every LOOK_S."""
        while True:
            with suppress(StoreError):  # the parts that need the store say so
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Say whether it is another store; remember it where it is not. Raises StoreError."""
        known = await asyncio.to_thread(self._read)
        here = Known(self._path, self._epoch())
        another = known and known.path == here.path and known.epoch != here.epoch
        if known and another:
            epochs = await self._epochs()
            if epochs is not None and known.epoch not in epochs:
                self._tell(known)
                return
        self._conditions.clear("store_is_another", self._path)
        if known != here:
            await asyncio.to_thread(self._write, here)

    def _tell(self, known: Known) -> None:
        self._conditions.hold(
            "store_is_another",
            self._path,
            "critical",
            f"the disk has a store of the epoch {self._epoch()}, and knows nothing of "
            f"{known.epoch}, which was there before: another disk is mounted, or what was on it is "
            "gone",
            "put the former disk back, and restart the agent: what it holds is not delivered yet; "
            f"if this one is meant, remove {self._file}",
        )

    def _read(self) -> Known | None:
        try:
            with plain_file.opened(self._file) as file:
                return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Known)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s: %s; the store that is there counts", self._file, error)
            return None

    def _write(self, here: Known) -> None:
        try:
            whole_file.replace(self._file, msgspec.json.encode(here) + b"\n")
        except OSError as error:
            if self._unwritten != str(error):
                self._unwritten = str(error)
                log.warning("%s: %s: another disk would not be noticed", self._file, error)
