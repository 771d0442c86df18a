"""What the agent remembers of its own update: `update.json`, in the unit's folder.

    idle        none is under way; the last one came to nothing before it was switched to
    fetched     the package lies where root finds it
    built       root has put it into the other slot, and it answered for itself
    switched    the other slot is linked, on trial; the agent ends, to be started from there
    confirmed   it has proved itself
    back        it has not, and the former version is linked again

Limits  : one small file; the last LOG_MAX states stand in it.
Format  : JSON, Record, replaced as a whole and fsynced, before the step that it names is begun. The
          version before or after this one reads it, too: what it does not know it passes over,
          what is not there has its default.
Recovery: which version runs is root's files alone to say (agent/host/slots/layout.py); `settled`
          brings this one up to them. Without it, or where it cannot be read, the version that
          runs is the one that is linked, and one on trial is judged by its health alone.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent import plain_file, whole_file
from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.conditions import Condition
from agent.host.slots.layout import Ended, Slots

log = logging.getLogger("update")
FILE_BYTES_MAX = 1 << 20
LOG_MAX = 64
WHY_CHARS_MAX = 600
BY_HAND = "another version was installed by hand meanwhile"
State = Literal["idle", "fetched", "built", "switched", "confirmed", "back"]


class Entry(Struct, frozen=True):
    """A state that was reached. `at_us` is a wall label."""

    state: State
    version: str
    why: str
    at_us: int


class Before(Struct, frozen=True, omit_defaults=True):
    """How it was before the switch: what the new version is not to make worse.

    `wrong`: all conditions that held, `NAME SUBJECT` each: which of them speak against a version,
    the one that is on trial knows, not the one that wrote this. `critical`: those of them that were
    (None: an older version wrote this, and `wrong` as it saw it).
    """

    link_up: bool = False
    wrong: tuple[str, ...] = ()
    critical: tuple[str, ...] | None = None

    @classmethod
    def of(cls, conditions: Iterable[Condition], *, link_up: bool) -> Self:
        """As it is now."""
        held = sorted((f"{one.name} {one.subject}", one.severity) for one in conditions)
        critical = tuple(name for name, severity in held if severity == "critical")
        return cls(link_up, tuple(name for name, _ in held), critical)

    def had(self, one: Condition) -> bool:
        """Whether it held, and was as bad."""
        name, critical = f"{one.name} {one.subject}", self.critical or ()
        if one.severity == "critical" and self.critical is not None:
            return name in critical
        return name in self.wrong or name in critical


class Brought(Struct, frozen=True):
    """What the command `id` had built, or gone back to, and which version ran until then."""

    id: str
    version: str
    former: str
    slot: str


class Record(Struct, frozen=True, kw_only=True):
    """An update. `id` is the command's; `mark` is of the trial before this one, if there was.

    `stays`: what runs where this one comes to nothing, if a command brought it.
    """

    state: State = "idle"
    id: str = ""
    version: str = ""
    former: str = ""
    slot: str = ""
    digest: str = ""
    why: str = ""
    before: Before = Before()
    mark: tuple[int, int] = (0, 0)
    log: Annotated[tuple[Entry, ...], Meta(max_length=LOG_MAX)] = ()
    stays: Brought | None = None

    @property
    def brought(self) -> list[Brought]:
        """What is known of the versions in the slots, the last one first."""
        own = Brought(self.id, self.version, self.former, self.slot)
        return [own, self.stays] if self.stays else [own]


class Kept:
    """The record, on the disk."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._writing = asyncio.Lock()  # the command and the trial, which go on side by side
        self.now = _read(path)

    async def begin(self, record: Record, state: State) -> None:
        """Another update begins, in this state; what runs may stay. As `reach`."""
        async with self._writing:
            record = replace(record, stays=_staying(self.now, record))
            await self._keep(_reached(record, state, "", self._clock))

    async def reach(self, state: State, why: str = "", **changes: Any) -> None:
        """This state is reached; on the disk when this returns. Raises HoldfastError."""
        async with self._writing:
            await self._keep(_reached(replace(self.now, **changes), state, why, self._clock))

    async def settle(self, slots: Slots, version: str) -> None:
        """As `settled` says, seen by this version. Raises HoldfastError."""
        async with self._writing:
            if found := settled(self.now, slots, version):
                await self._keep(_reached(self.now, *found, self._clock))

    async def _keep(self, record: Record) -> None:
        encoded = msgspec.json.format(msgspec.json.encode(record)) + b"\n"
        try:
            await asyncio.to_thread(whole_file.replace, self.path, encoded)
        except OSError as error:
            raise HoldfastError(
                f"{self.path}: {error.strerror or error}", "check room and rights on its disk"
            ) from error
        self.now = record
        why = f": {record.why}" if record.why else ""
        log.info("version %s: %s%s", record.version, record.state, why)


def _reached(record: Record, state: State, why: str, clock: Clock) -> Record:
    why = why[:WHY_CHARS_MAX]
    entry = Entry(state, record.version, why, int(clock.wall() * 1e6))
    return replace(record, state=state, why=why, log=(*record.log, entry)[-LOG_MAX:])


def _staying(known: Record, begun: Record) -> Brought | None:
    """What is known of the version that the begun update is to replace, in the slot beside its."""
    beside = [one for one in known.brought if one.slot not in ("", begun.slot)]
    return next((one for one in beside if begun.former in ("", one.version)), None)


def settled(record: Record, slots: Slots, version: str) -> tuple[State, str] | None:
    """What has become of an update, where the record does not have it yet. None: it has.

    The new version's process may have died at any instant, and so may the one that ordered it; and
    somebody may have installed `version`, the one that asks, by hand meanwhile.
    """
    here = slots.running == record.slot
    if record.state in ("fetched", "built"):
        return ("idle", BY_HAND) if here or version != record.former else None
    if record.state != "switched" or slots.trial():
        return None
    if here:
        return "confirmed", "it has proved itself"
    ended = slots.ended()
    if ended and _is_of(ended, record):
        return "back", ended.why
    if version != record.former:
        return "idle", BY_HAND
    return "built", "it was not switched to yet"


def _is_of(ended: Ended, record: Record) -> bool:
    return ended.mark != record.mark and ended.slot == record.slot


def _read(path: Path) -> Record:
    try:
        with plain_file.opened(path) as file:
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: %s; what is known of the last update is lost", path, error)
        return Record()
