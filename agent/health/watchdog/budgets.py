"""What the watchdog has tried of late, kept over restarts of the agent and of the machine.

So a part that is dead again after each restart climbs on, to the reboot and the reset.

Limits  : TAKEN_MAX remedies of a part, none older than BUDGET_S_MAX; PARTS_MAX parts.
Format  : a JSON object, Kept, written whole and fsynced beside the store: at each remedy, and while
          one is remembered each KEEP_S.
Recovery: a file that cannot be read is begun anew, with full budgets.

Time counts while the machine runs. Within one boot the monotonic clock says how much has passed
since the file was written; after another boot at least as much as the machine has been up.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent import plain_file
from agent.clock import Clock
from agent.health.watchdog.kept import KeptFile
from agent.health.watchdog.policy import Taken

log = logging.getLogger("watchdog")
BUDGET_S_MAX = 86_400.0  # no step of a ladder counts its tries for longer
KEEP_S = 300.0
PARTS_MAX = 1024
FILE_BYTES_MAX = 1 << 20
_Seconds = Annotated[float, Meta(ge=0, le=1e10)]  # so that adding to it counts


class Kept(Struct, frozen=True):
    """`now_s` of the watchdog's axis was `at_s` of the clock in the boot `boot`."""

    boot: str
    at_s: _Seconds
    now_s: _Seconds
    taken: Annotated[dict[str, list[Taken]], Meta(max_length=PARTS_MAX)]


class Budgets:
    """`file` keeps what is noted."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.file = KeptFile(path, lambda: msgspec.json.encode(self._noted))
        self._clock = clock
        self._noted: Kept | None = None
        found = _read(path)
        self.begun_s = self._now_s(found) if found else 0.0
        self._taken = found.taken if found else {}
        self._noted_s = self.begun_s

    def before(self) -> dict[str, tuple[Taken, ...]]:
        """What was tried of each part before this start."""
        # A time to come is none: it would count for ever.
        return {
            part: tuple(one._replace(at_s=min(one.at_s, self.begun_s)) for one in lately)
            for part, lately in _lately(self._taken, self.begun_s).items()
        }

    def note(self, now_s: float, taken: Mapping[str, tuple[Taken, ...]]) -> None:
        """What is remembered of each part now."""
        left = _lately(taken, now_s)
        self._noted = Kept(self._clock.boot, self._clock.monotonic(), now_s, left)
        self._noted_s = now_s
        self.file.changed()

    def due(self, now_s: float) -> bool:
        """Whether it is time to note that time has passed, for something that is remembered."""
        remembered = self._noted.taken if self._noted else self._taken
        return bool(remembered) and now_s - self._noted_s >= KEEP_S

    def _now_s(self, found: Kept) -> float:
        up_s = self._clock.monotonic()
        passed_s = up_s - found.at_s if found.boot == self._clock.boot else up_s
        return found.now_s + max(passed_s, 0.0)


def _lately(taken: Mapping[str, Sequence[Taken]], now_s: float) -> dict[str, list[Taken]]:
    """Of PARTS_MAX parts, those with the last remedies, what is not too old to count."""
    since_s = now_s - BUDGET_S_MAX
    fresh = {part: [one for one in every if one.at_s > since_s] for part, every in taken.items()}
    known = sorted((part for part in fresh if fresh[part]), key=lambda part: fresh[part][-1].at_s)
    return {part: fresh[part] for part in known[-PARTS_MAX:]}


def _read(path: Path) -> Kept | None:
    try:
        with plain_file.opened(path) as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Kept)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: begun anew: %s", path, error)
        return None
