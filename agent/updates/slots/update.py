"""The steps of an update, each of which may be the last one of this process (record.py).

What counts is what lies on the disk: each step looks at it, does what is missing, and says so. The
command's own steps (`call.note`) only tell people how far it is.
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from msgspec import Struct
from msgspec.structs import replace

from agent.errors import HoldfastError, NotNow
from agent.host.root.forms import Order
from agent.host.root.forms import Slots as SlotsOrder
from agent.host.slots.layout import Slot, Slots
from agent.updates.slots.probe import Answer
from agent.updates.slots.record import Before, Brought, Kept, Record, State

LOOK_S = 0.5
BUILD_S_MAX = 2100.0  # longer than the unit has
QUIET_S = 20.0  # for systemd to begin it
ASKS_MAX = 3
END_S_MAX = 300.0  # an agent that is told to end has long done so
_BY_HAND = "install the new version by provisioning/install.sh (docs/agent-update.md)"


class Orders(Protocol):
    """The root daemon, as agent.host.root.client.Root."""

    async def ask(self, order: Order) -> str:
        """Raises RootUnreachable, RootRefused."""


class Package(Protocol):
    """What was fetched, as agent.updates.fetched.Fetched."""

    @property
    def path(self) -> str:
        """Where it lies."""

    @property
    def version(self) -> str:
        """What it was published as."""

    @property
    def digest(self) -> str:
        """Its SHA-256, hexadecimal."""


class Call(Protocol):
    """The command at hand, as agent.commands.verb.Call."""

    @property
    def id(self) -> str:
        """The command's."""

    async def note(self, step: str) -> None:
        """Durable when it returns. Raises StoreError."""


class Outcome(Struct, frozen=True):
    """Which version runs, since which one, and why."""

    version: str
    former: str
    why: str


class Updating:
    """One update at a time: whoever calls sees to that (the lane of the commands)."""

    def __init__(
        self,
        slots: Slots | None,
        root: Orders,
        kept: Kept,
        ask: Callable[[Path], Awaitable[Answer]],
        before: Callable[[], Before],
        restart: Callable[[str], None],
        version: str,
    ) -> None:
        """`slots`: None: the agent was not installed into any. `ask` has a slot answer for itself
        (probe.py); `before` is how things are now; `restart` ends the agent, to be started again,
        and says why; `version` is this one's. A package is staged beside the record, in `update/`.
        """
        self._slots, self._root, self._kept = slots, root, kept
        self._ask, self._before, self._restart = ask, before, restart
        self._version = version
        self._staged = kept.path.parent / "update" / "package"

    async def update(
        self, package: Package, call: Call, drop: Callable[[Any], Awaitable[None]]
    ) -> Outcome:
        """Have this package run; `drop` is told of it once it lies where root finds it.

        Returns in the new version. Raises HoldfastError: which version runs instead, and why.
        """
        slots = self._free()
        await self._stage(package)
        await self._begin("fetched", call, slots, Slot(package.version, package.digest))
        await drop(package)
        return await self._go_on(slots, call)

    async def rollback(self, call: Call, of: str = "") -> Outcome:
        """Have the version in the other slot run. As `update`.

        `of`: nothing is done unless the version runs that this command has brought; and it goes
        back to the one before that, no other.
        """
        brought = self._brought(of)
        if of and brought is None:
            word = f"nothing was done: no version that {of} has brought runs"
            return Outcome(self._version, self._version, word)
        slots = self._free()
        former = slots.there(slots.other)
        if former is None:
            raise NotNow("the other slot has no version to go back to", "see agent.update")
        if brought and brought.former != former.version:
            raise NotNow(
                f"before {of}, version {brought.former} ran: the other slot has {former.version}",
                f"agent.rollback without `of` goes to {former.version}; or see agent.update",
            )
        await self._asked(slots, former)
        await self._begin("built", call, slots, former)
        return await self._go_on(slots, call)

    def began(self, call: Call) -> bool:
        """Whether this command's update is the one that the record is of."""
        return self._kept.now.id == call.id

    def _brought(self, command: str) -> Brought | None:
        """The version that runs, if this command has brought it."""
        runs = (command, self._version, self._slots.running if self._slots else None)
        found = self._kept.now.brought if command else []
        return next((one for one in found if (one.id, one.version, one.slot) == runs), None)

    async def resume(self, call: Call) -> Outcome:
        """Go on after a crash, or a start: in whichever version. As `update`."""
        if self._slots is None:
            raise NotNow("this agent does not run from a slot any more", _BY_HAND)
        return await self._go_on(self._slots, call)

    async def _go_on(self, slots: Slots, call: Call) -> Outcome:
        """From the state that the record has, to the end."""
        while True:
            await self._kept.settle(slots, self._version)
            record = self._kept.now
            match record.state:
                case "fetched":
                    await self._build(record, slots, call)
                case "built":
                    await self._switch(record, slots, call)
                case "confirmed":
                    return Outcome(record.version, record.former, record.why)
                case "back" if slots.running != record.slot:
                    raise HoldfastError(
                        f"version {record.version} did not prove itself ({record.why}): version "
                        f"{self._version} runs",
                        "have it mended, and give it a new version",
                    )
                case "switched" | "back":
                    await self._wait(record, slots)
                case "idle":
                    raise HoldfastError(f"version {self._version} runs: {record.why}")

    def _free(self) -> Slots:
        if self._slots is None:
            raise NotNow("this agent was not installed into slots", _BY_HAND)
        if self._slots.trial():
            raise NotNow("a version is on trial", "wait until it is confirmed, or has gone back")
        if self._slots.linked != self._slots.running:  # root would build where this process is from
            raise NotNow(
                "another version is installed, and not started yet", "device.restart first"
            )
        return self._slots

    async def _begin(self, state: State, call: Call, slots: Slots, what: Slot) -> None:
        begun = Record(id=call.id, version=what.version, digest=what.digest)
        begun = replace(begun, former=self._version, slot=slots.other)
        await self._kept.begin(begun, state)
        await call.note(state)

    async def _stage(self, package: Package) -> None:
        """Where root looks for it. Raises HoldfastError."""
        try:
            await asyncio.to_thread(_put, Path(package.path), self._staged)
        except OSError as error:
            raise HoldfastError(
                f"{self._staged}: {error.strerror or error}", "make room on its disk"
            ) from error

    async def _build(self, record: Record, slots: Slots, call: Call) -> None:
        """Root puts it into the slot; the version answers for itself."""
        try:
            made = await self._built(record, slots)
            if made.version != record.version:
                raise NotNow(
                    f"it was published as {record.version}, and is signed as {made.version}",
                    "have it published anew",
                )
            await self._asked(slots, made)
        except HoldfastError as error:
            await self._give_up(error)
            return
        self._staged.unlink(missing_ok=True)
        await self._kept.reach("built")
        await call.note("built")

    async def _built(self, record: Record, slots: Slots) -> Slot:
        """What root has put there, of this package."""
        for _ in range(ASKS_MAX):
            if made := _is_there(record, slots):
                return made
            former = slots.refused()
            if not slots.building():  # else for one that has died since
                await self._root.ask(SlotsOrder(act="build"))
            await self._until_quiet(slots, record, former)
            if (refused := slots.refused()) and refused != former:
                raise NotNow(refused[0].error, refused[0].hint)
        if made := _is_there(record, slots):
            return made
        raise NotNow("root did not build it, and does not say why", "journalctl -u holdfast-build")

    async def _until_quiet(self, slots: Slots, record: Record, former: object) -> None:
        """Until it is built, or nobody is at it for QUIET_S."""
        loop = asyncio.get_running_loop()
        end_s, quiet_s = loop.time() + BUILD_S_MAX, loop.time() + QUIET_S
        while loop.time() < min(end_s, quiet_s):
            if slots.building():
                quiet_s = loop.time() + QUIET_S
            elif slots.refused() != former or _is_there(record, slots):
                return
            await asyncio.sleep(LOOK_S)

    async def _asked(self, slots: Slots, expected: Slot) -> None:
        answer = await self._ask(slots.place(slots.other))
        if answer.version != expected.version:
            raise NotNow(
                f"it is signed as version {expected.version}, and says that it is {answer.version}",
                "have it made anew",
            )

    async def _switch(self, record: Record, slots: Slots, call: Call) -> None:
        ended = slots.ended()
        mark = ended.mark if ended else (0, 0)
        await self._kept.reach("switched", before=self._before(), mark=mark)
        try:
            await self._root.ask(SlotsOrder(act="switch"))
        except HoldfastError as error:
            if not slots.trial():  # one that did not answer may have done it all the same
                await self._give_up(error)
                return
        await call.note("switched")
        await self._end(f"to begin as version {record.version}")

    async def _wait(self, record: Record, slots: Slots) -> None:
        """For the verdict; in the version that is not to run any more, for the end."""
        if slots.running != record.slot and slots.trial():
            await self._end(f"to begin as version {record.version}")
        await asyncio.sleep(LOOK_S)

    async def _give_up(self, error: HoldfastError) -> None:
        """The version that runs goes on."""
        with suppress(OSError):
            self._staged.unlink(missing_ok=True)
        await self._kept.reach("idle", f"{error}; {error.hint}" if error.hint else str(error))

    async def _end(self, why: str) -> NoReturn:
        self._restart(why)
        await asyncio.sleep(END_S_MAX)
        raise NotNow("the agent was told to end, and does not", "systemctl restart holdfast")


def _is_there(record: Record, slots: Slots) -> Slot | None:
    made = slots.there(record.slot)
    return made if made and made.digest == record.digest else None


def _put(source: Path, place: Path) -> None:
    """The same file under the other name, or a copy. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name("package.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:  # on another disk
        shutil.copyfile(source, fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
    fresh.replace(place)
