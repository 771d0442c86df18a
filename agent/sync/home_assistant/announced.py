"""What was announced to Home Assistant, and where, so that it can be taken back.

Limits  : one file for the place that serves, one for the place before it: of a place before that,
          where its broker was never reached again, the entities stay.
Format  : `home_assistant.json` and `home_assistant.former.json`, each an Announced.
Recovery: written before anything is announced. Where a file cannot be read nothing is taken back.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import whole_file
from agent.sync.plant.place import Place
from agent.threads import apart

log = logging.getLogger("plant")
KEPT_S = 2.0


class Announced(Struct, frozen=True):
    """`topics` is what lies retained at the place's first broker, `components` what was in the
    discovery: by id, their platforms."""

    place: Place
    topics: list[str]
    components: dict[str, str]


class Book:
    """The two files. `kept` and `former` are what stands in them; None: nothing."""

    def __init__(self, path: Path) -> None:
        """`path` is that of the first."""
        self._path, self._former_path = path, former_of(path)
        self.kept = _read(self._path)
        self.former = _read(self._former_path)

    def put_off(self) -> None:
        """What stands in the first is of a place that serves no more."""
        self.kept, self.former = None, self.kept
        try:
            self._path.replace(self._former_path)
        except OSError as error:
            log.warning("%s: %s", self._former_path, error)

    async def keep(self, announced: Announced) -> None:
        """This is about to be announced."""
        if announced == self.kept:
            return
        self.kept = announced
        write = partial(whole_file.replace, self._path, msgspec.json.encode(announced))
        try:
            async with asyncio.timeout(KEPT_S):
                await apart(write)
        except (OSError, TimeoutError) as error:  # snapshot_unwritable says it of this folder
            log.warning("%s: %s", self._path, error or "the disk does not answer")

    def forget_former(self) -> None:
        """It was taken back."""
        self.former = None
        try:
            self._former_path.unlink(missing_ok=True)
        except OSError as error:  # then it is taken back again
            log.warning("%s: %s", self._former_path, error)


def former_of(path: Path) -> Path:
    """The second file."""
    return path.with_suffix(".former.json")


def _read(path: Path) -> Announced | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Announced)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s: %s; what was announced by it is not taken back", path, error)
        return None
