"""Orders about orders: a command that has not begun is cancelled.

It ends as `interrupted`, for the reason `cancelled`, and had no effect. One that runs goes on: no
handler can be stopped in the middle without leaving in doubt what it has done.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from agent.commands.verb import Call, Verb
from agent.protocol.commands import CommandId, Result

CANCEL = "Have a command never begin that has not; takes the scope of that command."


class CancelArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """The `id` of a command; whoever cancels it must be one who may order it."""

    id: CommandId


class CommandVerbs:
    """The verbs."""

    def __init__(self, cancel: Callable[[str, str], Awaitable[Result]]) -> None:
        """`cancel` is the desk's."""
        self._cancel_it = cancel

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            Verb(
                *("commands.cancel", CANCEL, CancelArgs),
                *(self._cancel, "read"),
                resume=self._cancel,
                about=lambda args: args.id,
            )
        ]

    async def _cancel(self, args: CancelArgs, call: Call) -> dict[str, str]:
        found = await self._cancel_it(args.id, call.who)
        return {"id": found.id, "name": found.name, "state": found.state}
