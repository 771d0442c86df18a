"""The agent's own version: `agent.update`, `agent.rollback`."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from agent.commands.verb import Call, Verb
from agent.protocol.commands import CommandId
from agent.updates.slots.update import Outcome, Package, Updating

TIMEOUT_S = 4 * 3600.0  # a fetch over a bad line, a build on a slow board, and a trial
Told = Callable[[float, str], Awaitable[None]]


class Fetcher(Protocol):
    """What brings content here, as agent.updates.fetched.Fetcher; what it gives is a Package."""

    async def fetch(self, target: str, told: Told, source: str = "") -> Any:
        """The target, checked. Raises HoldfastError."""

    async def drop(self, fetched: Any) -> None:
        """It is not needed any more."""

    def foreign(self, source: str) -> str:
        """The source, where it is none of those that are configured; else ''."""


class UpdateArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Which version: its path in the fleet's repository; `source` is a folder (a stick) or a URL in
    place of the configured ones; from afar it must be one of them."""

    target: Annotated[str, Meta(min_length=1, max_length=256)]
    source: Annotated[str, Meta(max_length=2048)] = ""


class RollbackArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """`of`: only if the version runs that the command of this id has brought."""

    of: CommandId | None = None


class AgentVerbs:
    """An update ends in another process than it began in, often of another version: what lies on
    the disk says how far it is (agent/updates/slots/record.py)."""

    def __init__(self, updating: Updating, fetcher: Fetcher) -> None:
        self._updating = updating
        self._fetcher = fetcher

    def verbs(self) -> list[Verb[Any]]:
        """Both are resumed, and run one after the other."""
        update: Verb[Any] = Verb(
            "agent.update",
            "Have a new version run, on trial until it has proved itself.",
            UpdateArgs,
            self._update,
            resume=self._resume_update,
            foreign=self._foreign,
        )
        rollback: Verb[Any] = Verb(
            "agent.rollback",
            "Have the version in the other slot run, on trial as well.",
            RollbackArgs,
            self._rollback,
            resume=self._resume_rollback,
        )
        return [
            one._replace(scope="admin", lane="agent", timeout_s=TIMEOUT_S, grave=True)
            for one in (update, rollback)
        ]

    def _foreign(self, args: UpdateArgs) -> str:
        return self._fetcher.foreign(args.source)

    async def _update(self, args: UpdateArgs, call: Call) -> Outcome:
        package: Package = await self._fetcher.fetch(args.target, call.tell, args.source)
        return await self._updating.update(package, call, self._fetcher.drop)

    async def _resume_update(self, args: UpdateArgs, call: Call) -> Outcome:
        if self._updating.began(call):
            return await self._updating.resume(call)
        return await self._update(args, call)

    async def _rollback(self, args: RollbackArgs, call: Call) -> Outcome:
        return await self._updating.rollback(call, args.of or "")

    async def _resume_rollback(self, args: RollbackArgs, call: Call) -> Outcome:
        if self._updating.began(call):
            return await self._updating.resume(call)
        return await self._rollback(args, call)
