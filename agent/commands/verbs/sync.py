"""Orders to the link: pause, resume, limit, now. Each may be given again: it says how things are to
be, not what is to change."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from msgspec import Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.errors import RequestError
from agent.forms import Rate, Seconds

LANE = "sync"


class Pause(Struct, frozen=True, forbid_unknown_fields=True):
    """For so long, or (null) until it is resumed. Commands and heartbeats go on."""

    for_s: Seconds | None = None


class Limit(Struct, frozen=True, forbid_unknown_fields=True):
    """This rate in place of the configured ones, for so long; null ends such an order."""

    rate_bytes_per_s_max: Rate | None
    for_s: Seconds | None = None


class Now(Struct, frozen=True, forbid_unknown_fields=True):
    """Without a rate for so long."""

    unlimited_s: Seconds | None = None


class Control(Protocol):
    """What carries the orders out (sync/budget/control.py)."""

    async def pause(self, for_s: float | None) -> None: ...  # noqa: D102
    async def resume(self) -> None: ...  # noqa: D102
    async def limit(self, bytes_per_s: int | None, for_s: float | None) -> None: ...  # noqa: D102
    def now(self, unlimited_s: float | None) -> None: ...  # noqa: D102


class SyncVerbs:
    """Each answers with the state of the link that follows from it."""

    def __init__(self, control: Control, state: Callable[[], Awaitable[Any]]) -> None:
        self._control = control
        self._state = state

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("sync.pause", "Send nothing.", Pause, self._pause, lane=LANE),
            again("sync.resume", "Send again.", NoArgs, self._resume, lane=LANE),
            again("sync.limit", "Send at most so much.", Limit, self._limit, lane=LANE),
            again("sync.now", "Send at once what can be sent.", Now, self._now, lane=LANE),
        ]

    async def _pause(self, args: Pause, _: Call) -> Any:
        await self._control.pause(args.for_s)
        return await self._state()

    async def _resume(self, _: NoArgs, __: Call) -> Any:
        await self._control.resume()
        return await self._state()

    async def _limit(self, args: Limit, _: Call) -> Any:
        if args.rate_bytes_per_s_max is None and args.for_s is not None:
            raise RequestError(
                "sync.limit: for_s goes with a rate, and there is none", "leave for_s out"
            )
        await self._control.limit(args.rate_bytes_per_s_max, args.for_s)
        return await self._state()

    async def _now(self, args: Now, _: Call) -> Any:
        self._control.now(args.unlimited_s)
        return await self._state()
