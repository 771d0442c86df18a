"""A device whose broker sends again what was not acknowledged; it may be killed in any state.

    python -m tests.commands.device FOLDER STATE TIMES HOW

In FOLDER are `orders` (JSON, a line each) and what comes of them: `acked`, `effects`, `results` and
`states`, all written through to the disk. At the first TIMES of STATE it kills itself (`kill`), or
the store refuses that once (`fail`). It ends once every order was acknowledged and has ended.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.commands.verb import Call, Verb, again
from agent.errors import NotThere, StoreError
from agent.protocol.commands import decode
from agent.store.journal import Journal
from tests.commands.rig import Rig, rig

AROUND = ("accept", "begin", "note", "end", "refuse", "told", "cancel")


class Make(Struct, frozen=True, forbid_unknown_fields=True):
    """A thing to be made."""

    thing: str


class States:
    """Notes each state, and strikes in one of them."""

    def __init__(self, folder: Path, state: str, times: int, how: str) -> None:
        self._path = folder / "states"
        self._struck = folder / "struck"
        self._state, self._times, self._how = state, times, how

    def reach(self, state: str) -> None:
        """It has come so far. Raises StoreError where that is to fail."""
        write(self._path, state)
        struck = len(lines(self._struck))
        if state == self._state and struck < self._times:
            write(self._struck, state)
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise StoreError(f"{state}: as the test wants it")


class Watched:
    """A journal whose calls are states, before and after."""

    def __init__(self, journal: Journal, states: States) -> None:
        self._journal = journal
        self._states = states

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._journal, name)
        if name not in AROUND:
            return found

        async def around(*args: Any) -> Any:
            self._states.reach(f"{name}:before")
            answer = await found(*args)
            self._states.reach(f"{name}:after")
            return answer

        return around


class Makers:
    """Verbs that make something: one that can go on, one that cannot; and one that keeps others of
    their lane waiting until a command has ended."""

    def __init__(self, one: Rig, folder: Path, states: States) -> None:
        self._desk = one.desk
        self._folder = folder
        self._states = states

    def verbs(self) -> list[Verb[Any]]:
        return [
            Verb("once", "Make it; broken off, nobody knows.", Make, self._once, lane="a"),
            again("surely", "Make it, whatever happens.", Make, self._surely, lane="a"),
            again("hold", "Until the command `thing` has ended.", Make, self._hold, lane="a"),
        ]

    async def _hold(self, args: Make, _: Call) -> Any:
        seen = 0
        while not await self._is_over(args.thing):
            seen = await self._desk.changes.after(seen)

    async def _is_over(self, name: str) -> bool:
        try:
            return (await self._desk.result(name)).ended
        except NotThere:  # it comes yet
            return False

    async def _once(self, args: Make, _: Call) -> Any:
        return self._make(args.thing)

    async def _surely(self, args: Make, call: Call) -> Any:
        if not call.step:
            await call.note("begun")
        if (self._folder / f"made-{args.thing}").exists():
            return {"made": args.thing}
        return self._make(args.thing)

    def _make(self, thing: str) -> Any:
        self._states.reach("effect:before")
        (self._folder / f"made-{thing}").touch()
        write(self._folder / "effects", thing)
        self._states.reach("effect:after")
        return {"made": thing}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def write(path: Path, line: str) -> None:
    """Append a line, and see it on the disk."""
    with path.open("a") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


async def hand_in(one: Rig, folder: Path, line: str) -> None:
    """As the door at the link does: what the store did not take comes again."""
    while line not in lines(folder / "acked"):
        try:
            await one.desk.order(decode(line.encode()), "mqtt")
        except StoreError:
            continue
        write(folder / "acked", line)


async def tell(one: Rig, journal: Any, folder: Path) -> None:
    """As the door at the link does: what nobody has is told, until somebody has it."""
    while True:
        entries, refusals = await journal.untold(10)
        if not entries and not refusals:
            return
        for kept in (*entries, *refusals):
            result = one.desk.told(kept)
            write(folder / "results", f"{result.id} {result.state} {result.reason}")
        with suppress(StoreError):
            await journal.told([x.number for x in entries], [x.number for x in refusals])


Verbs = Callable[[Rig, Path, States], list[Verb[Any]]]


def _makers(one: Rig, folder: Path, states: States) -> list[Verb[Any]]:
    return Makers(one, folder, states).verbs()


async def main(folder: Path, states: States, verbs: Verbs = _makers) -> None:
    def journal(real: Journal) -> Watched:
        return Watched(real, states)

    async with rig(folder, journal=journal, run=False) as one:
        made = verbs(one, folder, states)
        one.desk.catalogue._verbs.update({verb.name: verb for verb in made})
        running = asyncio.create_task(one.desk.run())
        for line in lines(folder / "orders"):
            await hand_in(one, folder, line)
        seen = one.desk.changes.number
        while await one.store.journal.open():
            seen = await one.desk.changes.after(seen)
        await tell(one, one.desk._journal, folder)
        running.cancel()
        await asyncio.wait([running])


if __name__ == "__main__":
    where = Path(sys.argv[1])
    asyncio.run(main(where, States(where, sys.argv[2], int(sys.argv[3]), sys.argv[4])))
