"""The number that says to which birth of the node a death belongs: `bdSeq` of Sparkplug.

Limits  : 0 to 255, then 0 again. One write for each CONNECT that goes out; a disk that does not
          take it within KEPT_S keeps nobody from connecting.
Format  : `{"bdseq": 17}`: that of the last CONNECT.
Recovery: written before the CONNECT, so that after a crash the next one has another number. Where
          the file cannot be read it begins at 0: a death of before may then be taken for one of
          now, until the next birth.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import whole_file
from agent.threads import apart

log = logging.getLogger("plant")
NUMBERS = 256
KEPT_S = 2.0


class _Kept(Struct, frozen=True):
    bdseq: int


class Births:
    """Counts the CONNECTs, over restarts."""

    def __init__(self, path: Path) -> None:
        self.number = 0  # of the CONNECT at hand
        self._path = path
        self._last = self._read()
        self._unused = False  # the last one never went out

    async def next(self) -> int:
        """The number of the next CONNECT, kept."""
        if not self._unused:
            self._last = 0 if self._last is None else (self._last + 1) % NUMBERS
            await self._keep(self._last)
        self._unused = False
        assert self._last is not None
        self.number = self._last
        return self.number

    def unused(self) -> None:
        """The CONNECT with the last number never went out."""
        self._unused = True

    def _read(self) -> int | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept).bdseq % NUMBERS
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: %s; bdSeq begins at 0", self._path, error)
            return None

    async def _keep(self, number: int) -> None:
        content = msgspec.json.encode(_Kept(number))
        try:
            async with asyncio.timeout(KEPT_S):
                await apart(partial(whole_file.replace, self._path, content))
        except (OSError, TimeoutError) as error:  # snapshot_unwritable says it of this folder
            log.warning("%s: %s", self._path, error or "the disk does not answer")
