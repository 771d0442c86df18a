"""Orders to the domains: start one anew, have them be as the configuration says."""

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.forms import Name

LANE = "domains"
APPLY_S = 600.0


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """The domain."""

    domain: Name


class DomainVerbs:
    """What is done to the domains; what they refuse is told as it is."""

    def __init__(
        self,
        restart: Callable[[str], None],
        apply: Callable[[], Awaitable[dict[str, str]]],
        show: Callable[[], Awaitable[Any]],
    ) -> None:
        self._restart = restart
        self._apply = apply
        self._show = show

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            Verb("domain.restart", "Start a domain anew.", Which, self._anew, "operate", LANE),
            again(
                "domains.apply",
                "Have the domains be as the configuration file says.",
                NoArgs,
                self._applied,
                "operate",
                LANE,
                APPLY_S,
            ),
            again("domains.show", "Each domain, by name.", NoArgs, self._shown, "read"),
        ]

    async def _anew(self, args: Which, _: Call) -> Any:
        self._restart(args.domain)
        return {"restarting": args.domain}

    async def _applied(self, _: NoArgs, __: Call) -> Any:
        return {"domains": await self._apply()}

    async def _shown(self, _: NoArgs, __: Call) -> Any:
        return await self._show()
