"""What can be looked into from afar: a fixed list, and no shell."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.errors import NotThere

LINES_MAX = 500
LOOK_S = 120.0
Check = Callable[[], Awaitable[Any]]


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """One of `diagnose.list`; each has a summary there."""

    check: Annotated[str, Meta(max_length=64)]


class Tail(Struct, frozen=True, forbid_unknown_fields=True):
    """The last lines of at least this level."""

    count: Annotated[int, Meta(ge=1, le=LINES_MAX)] = 100
    level: Literal["debug", "info", "warning", "error"] = "debug"


class DiagnosticVerbs:
    """They change nothing."""

    def __init__(
        self, checks: Mapping[str, tuple[str, Check]], lines: Callable[[str], list[Any]]
    ) -> None:
        """`checks` by name: a summary, and what looks. `lines` of the log, of at least a level."""
        self._checks = checks
        self._lines = lines

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("diagnose.list", "What can be looked into.", NoArgs, self._list, "read"),
            again("diagnose", "Look into one part.", Which, self._look, "read", "", LOOK_S),
            again("log.tail", "The last lines of the log.", Tail, self._tail, "read"),
        ]

    async def _list(self, _: NoArgs, __: Call) -> Any:
        return {"checks": {name: summary for name, (summary, _) in self._checks.items()}}

    async def _look(self, args: Which, _: Call) -> Any:
        if args.check not in self._checks:
            known = ", ".join(self._checks)
            raise NotThere(f"there is no check {args.check!r}", f"there are {known}")
        return await self._checks[args.check][1]()

    async def _tail(self, args: Tail, _: Call) -> Any:
        return {"lines": self._lines(args.level)[-args.count :]}
