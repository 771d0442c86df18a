"""Dead letters of the link are a condition of their stream, as long as the store holds some."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from agent.errors import StoreError
from agent.health.conditions import Conditions
from agent.store.outbox import Buried
from agent.words import counted

LOOK_S = 5.0


class Letters:
    """Follows the store, and it alone: a record was buried, sent again, given up, or lay there
    before the start."""

    def __init__(
        self,
        buried: Callable[[], Awaitable[list[Buried]]],
        more: asyncio.Event,
        conditions: Conditions,
    ) -> None:
        """`more` is set whenever a record was buried."""
        self._buried = buried
        self._more = more
        self._conditions = conditions
        self._told: set[str] = set()  # streams

    async def run(self) -> None:
        """Look when there are more, and each LOOK_S, for ever."""
        while True:
            self._more.clear()
            with suppress(StoreError):  # the parts that need the store say so
                self.tell(await self._buried())
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._more.wait()

    def tell(self, buried: list[Buried]) -> None:
        """These are there now; it is over for the streams that are not among them."""
        found: dict[str, list[Buried]] = {}
        for one in buried:
            found.setdefault(one.name[1], []).append(one)
        for stream in self._told - found.keys():
            self._conditions.clear("dead_letters", stream)
        self._told = set(found)
        for stream, of in found.items():
            count, last = sum(one.records for one in of), of[-1]
            single, many = "record is held as a dead letter", "records are held as dead letters"
            self._conditions.hold(
                "dead_letters",
                stream,
                "warning",
                f"{counted(count, single, many)} of the link; the last, #{last.last}: {last.cause}",
                f"`holdfast outbox show {stream} --dead` lists them, `outbox retry` sends them "
                "again, `outbox drop` gives them up",
            )
