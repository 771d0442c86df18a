"""Where orders come in, whichever door they came by, and are carried out: each id once.

    a door -> admission.py -> the journal's commit (the order is accepted, and may be acknowledged)
           -> its lane -> the verb's handler -> the journal's commit (the end, and its record)

Those of one lane run one after the other, in the order in which they were accepted. After a crash
the journal says how far each was: one that had not begun begins, one that had goes on where its
verb can, and is told as interrupted where it cannot.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress

from agent.changes import Changes
from agent.clock import Clock
from agent.commands import shown
from agent.commands.admission import LISTED, Admission
from agent.commands.catalogue import Catalogue
from agent.commands.runs import Runs
from agent.commands.trust import Refused, Rules
from agent.errors import NotNow, NotThere, StoreError
from agent.known_time import KnownTime
from agent.protocol.commands import Command, Door, Order, Result, Unread
from agent.store.journal import Entry, Journal, Refusal

log = logging.getLogger("commands")
FORGET_S = 600.0


class Desk:
    """`run` carries out what was accepted, for ever.

    `changes` tells that something happened, `listeners` are told what, of commands that were
    accepted; the journal has it by then, but for the progress of one that runs.
    """

    def __init__(
        self, journal: Journal, catalogue: Catalogue, rules: Rules, known: KnownTime, clock: Clock
    ) -> None:
        self.catalogue = catalogue
        self.changes = Changes()
        self.rules = rules
        self._journal = journal
        self._admission = Admission(journal, catalogue, rules, known)
        self._parting = False
        self.listeners: list[Callable[[Result], None]] = []
        self._runs = Runs(journal, catalogue, rules.device, clock, self._tell)

    async def order(
        self,
        order: Order,
        door: Door,
        *,
        scopes: Collection[str] | None = None,
        reply: bytes | None = None,
        again: bool = True,
    ) -> Result:
        """Take an order; its result as it is now, a refusal too. Raises StoreError: then nothing is
        known of it, and it may come again.

        `scopes` are those of a local caller; None: the door is another guard's. `reply` is kept
        beside it, for the door, in place of what was there for a known id; not where it is not
        `again` that it was given. Accepted or refused, it is in the store when this returns.
        """
        try:
            entry, fresh = await self._admission.admit(order, door, scopes, reply)
        except Refused as refused:
            return await self.refuse(order, door, refused, reply)
        if fresh:
            self._tell(shown.result(entry, self.rules.device))
        elif again and reply is not None:
            await self._journal.wanted_at(entry.number, reply)
            entry = await self._journal.get(entry.id) or entry  # it may have ended meanwhile
        self._runs.begin(entry)  # also where it was accepted without our knowing
        return shown.result(entry, self.rules.device)

    async def from_plant(self, command: Command) -> Result:
        """As `order`, for the other systems of the site."""
        return await self.order(Order(command), "plant")

    def takes_from_plant(self, name: str) -> bool:
        """Whether those may order this."""
        return self._admission.takes_from_plant(name)

    async def cancel(self, name: str, who: str) -> Result:
        """End a command that has not begun; its result. Raises NotThere, NotNow, StoreError."""
        entry = await self._journal.get(name)
        if entry and entry.ended_us is None:
            entry = await self._runs.cancel(entry, who)
        if entry is None:
            raise NotThere(f"there is no command {name!r}", LISTED)
        if entry.ended_us is None:
            raise NotNow(f"{entry.name} {name!r} runs already", "wait until it has ended")
        if entry.reason != "cancelled":
            raise NotNow(f"{entry.name} {name!r} has ended already: {entry.state}")
        return shown.result(entry, self.rules.device)

    async def refuse(
        self, order: Order | Unread, door: Door, refused: Refused, reply: bytes | None = None
    ) -> Result:
        """Keep that something was not accepted; what is told of it. Raises StoreError."""
        named = order.command if isinstance(order, Order) else order
        kept = Refusal(
            id=named.id,
            name=named.name,
            door=door,
            reason=refused.reason,
            message=str(refused),
            hint=refused.hint,
            issuer=order.command.issuer if isinstance(order, Order) else "",
            by=order.by if isinstance(order, Order) else "",
            reply=reply,
        )
        await self._journal.refuse(kept)
        log.warning("refused %s %r by %s: %s", kept.name or "?", kept.id, door, refused)
        result = self.told(kept)
        self._tell(result)
        return result

    def told(self, kept: Entry | Refusal) -> Result:
        """What is told of what the journal holds."""
        if isinstance(kept, Entry):
            return shown.result(kept, self.rules.device)
        return shown.refusal(kept, self.rules.device)

    async def unread(self, error: Unread, door: Door, reply: bytes | None = None) -> Result:
        """As `refuse`, of what is no command at all."""
        return await self.refuse(error, door, Refused(error.reason, str(error), error.hint), reply)

    async def ended(self, name: str, within_s: float) -> Result:
        """The result of a command, once it has ended, `within_s` is over, or the agent ends.

        Raises NotThere, StoreError.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                seen = self.changes.number
                while not ((await self.result(name)).ended or self._parting):
                    seen = await self.changes.after(seen)
        return await self.result(name)

    def part(self) -> None:
        """The agent ends: whoever waits is told how far it is."""
        self._parting = True
        self.changes.tell()

    async def result(self, name: str) -> Result:
        """What is known of a command. Raises NotThere, StoreError."""
        entry = await self._journal.get(name)
        if entry is None:
            raise NotThere(f"there is no command {name!r}", LISTED)
        progress = self._runs.progress(entry.number)
        return shown.result(entry, self.rules.device, *progress)

    def scope(self, name: str) -> str:
        """Who may order a command; one that is not known any more was for an administrator."""
        return self._admission.scope(name)

    async def run(self) -> None:
        """Go on with what was begun before, and carry out what comes, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._runs.run())
            group.create_task(self._forget())

    async def _forget(self) -> None:
        while True:
            with suppress(StoreError):  # the parts that need the store say so
                while await self._journal.forget_old():
                    pass
            await asyncio.sleep(FORGET_S)

    def _tell(self, result: Result) -> None:
        for listener in self.listeners:
            listener(result)
        self.changes.tell()
