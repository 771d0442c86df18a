"""Versions on probation, over restarts: what is known of each, and what became of it.

Limits  : one small file, an entry for each model that a command ever activated: the last one, and
          in it (`stays`) the one whose version served before it.
Format  : JSON, {"MODEL": Trial}, replaced as a whole and fsynced: a crash leaves what was known
          before, or what is known now. A file of the time before `stays` is read as one without.
Recovery: without the file, or with one that cannot be read (it is said), none is on probation: the
          version that was chosen serves, unwatched. A command whose trial is gone begins it again.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent import plain_file, whole_file

log = logging.getLogger("domain")
FILE_BYTES_MAX = 4 << 20
Count = Annotated[int, Meta(ge=0)]
State = Literal["activating", "watched", "taking_back", "passed", "taken_back", "kept", "overtaken"]
ENDED: tuple[State, ...] = ("passed", "taken_back", "kept", "overtaken")


class Seen(Struct, frozen=True):
    """What calls to a version came to. `p95_ms`: of what they took to compute; None: too few."""

    calls: Count = 0
    failed: Count = 0
    p95_ms: float | None = None

    @property
    def failure_share(self) -> float:
        """Of all that were judged."""
        return self.failed / self.calls if self.calls else 0.0


class Trial(Struct, frozen=True, kw_only=True):
    """A version that the command `command` activated, in the place of `former` (None: of none).

    `left_s` is running time. `kept`: it breached its bounds, and nothing could take its place;
    `overtaken`: somebody had another version serve meanwhile. `tries`: how often its activation was
    begun; `ordered`: an operator ended it; `crashes`: how often the agent ended unasked meanwhile.
    `stays`: the trial of `former`, where a command brought that: it is the last one again where
    this one comes to nothing, and a way back can be of it still.
    """

    command: str
    name: str
    version: int
    former: int | None
    probation_s: float
    left_s: float
    state: State = "activating"
    why: str = ""
    ordered: bool = False
    before: Seen = Seen()
    seen: Seen = Seen()
    deaths: Count = 0
    tries: Count = 0
    crashes: Count = 0
    stays: "Trial | None" = None

    @property
    def ended(self) -> bool:
        """Whether this is the last word."""
        return self.state in ENDED


class Trials:
    """As they are on the disk; one may be newer than that, where the disk did not take it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = self._read()

    def of(self, name: str) -> Trial | None:
        """The last one of a model."""
        return self._held.get(name)

    def all(self) -> list[Trial]:
        """The last one of each model."""
        return list(self._held.values())

    def note(self, trial: Trial) -> None:
        """From now on this is known. Raises OSError; then it is known until the agent ends."""
        self.know(trial)
        self._write()

    def know(self, trial: Trial) -> None:
        """From now on this is known, until the agent ends."""
        self._held = {**self._held, trial.name: trial}

    def drop(self, name: str) -> None:
        """The last one came to nothing: what stays is the last one. Raises OSError."""
        known = self._held.get(name)
        self._held = {key: one for key, one in self._held.items() if key != name}
        if known and known.stays:
            self._held[name] = known.stays
        self._write()

    def bringing(self, name: str, version: int | None) -> Trial | None:
        """The one that brought this version of a model: the last one, or what stays of it."""
        known = self._held.get(name)
        found = (known, known.stays) if known else ()
        return next((one for one in found if one and one.version == version), None)

    def of_command(self, command: str) -> Trial | None:
        """The one of a command, as far as it is known still."""
        found = [one for known in self.all() for one in (known, known.stays) if one]
        return next((one for one in found if one.command == command), None)

    def _write(self) -> None:
        content = msgspec.json.format(msgspec.json.encode(self._held)) + b"\n"
        whole_file.replace(self._path, content)

    def _read(self) -> dict[str, Trial]:
        try:
            with plain_file.opened(self._path) as file:
                return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=dict[str, Trial])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s: %s; no version is on probation", self._path, error)
            return {}
