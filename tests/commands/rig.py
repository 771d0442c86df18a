"""A desk over a real store, with verbs whose effects can be counted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent import config
from agent.clock import Clock
from agent.commands.catalogue import Catalogue
from agent.commands.desk import Desk
from agent.commands.trust import Rules
from agent.commands.verb import Call, NoArgs, Verb, again
from agent.commands.verbs.commands import CommandVerbs
from agent.errors import NotNow, StoreFull
from agent.known_time import KnownTime
from agent.protocol.commands import Command, Door, Order, Result
from agent.store.journal import Journal, Limits
from agent.store.store import Store

DEVICE = "dev"


class Write(Struct, frozen=True, forbid_unknown_fields=True):
    """A line for the file of effects."""

    line: str = "x"


class Effects:
    """Verbs that write lines into a file; `gate` holds `wait` up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gate = asyncio.Event()

    def lines(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    def verbs(self) -> list[Verb[Any]]:
        return [
            Verb("write", "Write a line.", Write, self._write, lane="file"),
            Verb("wait", "Wait for the gate, then write.", Write, self._wait, lane="slow"),
            again("same", "Write a line that is not there yet.", Write, self._same, lane="file"),
            again("tell", "Tell its progress, wait.", NoArgs, self._tell, "read"),
            Verb("fail", "Fail.", NoArgs, self._fail),
            Verb("slow", "Take too long.", NoArgs, self._slow, timeout_s=0.05),
            Verb("much", "Answer with too much.", NoArgs, self._much),
            Verb("grave", "Be grave.", Write, self._write, "admin", grave=True),
        ]

    async def _write(self, args: Write, call: Call) -> Any:
        with self.path.open("a") as file:
            file.write(f"{call.id}:{args.line}\n")
        return {"wrote": args.line}

    async def _wait(self, args: Write, call: Call) -> Any:
        await self.gate.wait()
        return await self._write(args, call)

    async def _same(self, args: Write, call: Call) -> Any:
        if f"{call.id}:{args.line}" not in self.lines():
            await self._write(args, call)
        return {"lines": len(self.lines())}

    async def _tell(self, _: NoArgs, call: Call) -> Any:
        await call.tell(0.25, "a quarter")
        await self.gate.wait()
        return None

    async def _fail(self, _: NoArgs, __: Call) -> Any:
        raise NotNow("the moon is wrong", "wait for another one")

    async def _slow(self, _: NoArgs, __: Call) -> Any:
        await asyncio.Event().wait()

    async def _much(self, _: NoArgs, __: Call) -> Any:
        return "x" * 300_000


class Rig:
    """The desk, and what it stands on."""

    def __init__(self, store: Store, desk: Desk, effects: Effects, known: KnownTime) -> None:
        self.store, self.desk, self.effects, self.known = store, desk, effects, known

    async def order(self, name: str, id: str = "one", door: Door = "http", **more: Any) -> Result:
        """Order it; what was said at once."""
        scopes = more.pop("scopes", None)
        by = more.pop("by", "")
        command = Command(id=id, name=name, **more)
        return await self.desk.order(Order(command, by), door, scopes=scopes)

    def takes_no_record(self) -> None:
        """From now on the store has no room for what grows it."""
        write = self.store._database.write

        async def full(operation: Any, *, grows: Any = (), alone: bool = False) -> Any:
            if grows:
                raise StoreFull("no room")
            return await write(operation, alone=alone)

        self.store._database.write = full  # type: ignore[method-assign]

    async def ended(self, id: str = "one") -> Result:
        """Its result, once it has ended."""
        found = await self.desk.ended(id, 20)
        assert found.ended, found
        return found


@asynccontextmanager
async def rig(
    folder: Path,
    *,
    signed: Any = "never",
    keys: Sequence[str] = (),
    from_plant: Sequence[str] = (),
    clock: Clock | None = None,
    limits: Limits | None = None,
    journal: Any = None,
    run: bool = True,
) -> AsyncIterator[Rig]:
    """`journal` wraps the store's; with `run` what is accepted is carried out."""
    clock = clock or Clock()
    store = Store(config.Store(path=str(folder / "s.db")), clock, None, limits)
    effects = Effects(folder / "effects")
    async with store:
        kept: Journal = journal(store.journal) if journal else store.journal
        rules = Rules(DEVICE, signed, keys, from_plant)
        known = KnownTime(folder / "known-time.json", clock)
        own = CommandVerbs(lambda name, who: desk.cancel(name, who)).verbs()
        desk = Desk(kept, Catalogue([*effects.verbs(), *own]), rules, known, clock)
        running = asyncio.create_task(desk.run()) if run else None
        try:
            yield Rig(store, desk, effects, known)
        finally:
            if running:
                running.cancel()
                await asyncio.wait([running])
                if not running.cancelled() and (fault := running.exception()):
                    raise fault
