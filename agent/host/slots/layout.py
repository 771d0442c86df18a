"""What lies in the agent's slots; read by all, written by root alone (docs/agent-update.md).

venv -> slots/a         the version that is started
slots/a, slots/b        an environment each; `slot.json` in it: it is whole
slots/trial             FROM TO STARTS BOOT UPTIME_S, while a version is on trial (slots.sh)
slots/last              TO confirmed|back WHY: how the last trial ended (slots.sh)
slots/refused.json      why the last package was not built (build.py)
slots/build.lock        held while one is
"""

import fcntl
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec
from msgspec import Struct

NAMES = ("a", "b")
Verdict = Literal["confirmed", "back"]
TEXT_BYTES_MAX = 4096


class Slot(Struct, frozen=True):
    """What is in a slot; `digest` is the package's, empty where install.sh has put it there."""

    version: str
    digest: str = ""


class NotBuilt(Struct, frozen=True):
    """Why root did not take a package."""

    digest: str
    error: str
    hint: str = ""


class Trial(NamedTuple):
    """A version that has yet to prove itself, and how often it was started."""

    former: str
    slot: str
    starts: int


class Ended(NamedTuple):
    """How the last trial ended; `mark` is another one each time it is written."""

    slot: str
    verdict: Verdict
    why: str
    mark: tuple[int, int]


class Slots:
    """Those of a folder; `running` is the one that this process is of."""

    def __init__(self, folder: Path, running: str) -> None:
        self.folder = folder
        self.running = running

    @classmethod
    def of_this_process(cls, prefix: str = sys.prefix) -> Self | None:
        """None: this agent was not installed into slots."""
        own = Path(prefix).resolve()
        folder = own.parent.parent
        there = own.name in NAMES and own.parent.name == "slots" and (folder / "venv").is_symlink()
        return cls(folder, own.name) if there else None

    @property
    def linked(self) -> str:
        """The slot that is started next."""
        return (self.folder / "venv").resolve().name

    @property
    def other(self) -> str:
        """The one that this process is not of."""
        return other(self.running)

    def place(self, slot: str) -> Path:
        """Its folder."""
        return self.folder / "slots" / slot

    def there(self, slot: str) -> Slot | None:
        """What is in a slot; None: nothing that is whole."""
        try:
            return msgspec.json.decode((self.place(slot) / "slot.json").read_bytes(), type=Slot)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def trial(self) -> Trial | None:
        """None: no version is on trial. A trial is one only while the link leads to its slot."""
        found = self._text("trial").split()
        if len(found) != 5 or found[1] != self.linked or not found[2].isdigit():
            return None
        return Trial(found[0], found[1], int(found[2]))

    def ended(self) -> Ended | None:
        """How the last trial ended."""
        path = self.folder / "slots" / "last"
        slot, _, rest = self._text("last").partition(" ")
        verdict, _, why = rest.partition(" ")
        verdicts: dict[str, Verdict] = {"confirmed": "confirmed", "back": "back"}
        if verdict not in verdicts:
            return None
        try:
            seen = path.stat()
        except FileNotFoundError:  # another trial begins
            return None
        return Ended(slot, verdicts[verdict], why.strip(), (seen.st_ino, seen.st_mtime_ns))

    def refused(self) -> tuple[NotBuilt, tuple[int, int]] | None:
        """Why the last package was not built, and a mark that is another one each time."""
        path = self.folder / "slots" / "refused.json"
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.read(TEXT_BYTES_MAX), type=NotBuilt)
                seen = os.fstat(file.fileno())
                return found, (seen.st_ino, seen.st_mtime_ns)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def building(self) -> bool:
        """Whether root is at it."""
        try:
            with (self.folder / "slots" / "build.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _text(self, name: str) -> str:
        try:
            return (self.folder / "slots" / name).read_text(errors="replace")[:TEXT_BYTES_MAX]
        except OSError:
            return ""


def other(slot: str) -> str:
    """The one beside it."""
    return "b" if slot == "a" else "a"
