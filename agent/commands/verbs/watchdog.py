"""Orders to the watchdog: see what it did, try it for real, have it rest."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.health.watchdog.disarmed import DISARMED_S, DISARMED_S_MAX

LANE = "watchdog"


class Trial(Struct, frozen=True, forbid_unknown_fields=True):
    """The part that is to stand still: one of `watchdog.show`, or `loop`."""

    part: Annotated[str, Meta(max_length=128)]


class Disarming(Struct, frozen=True, forbid_unknown_fields=True):
    """For how long nothing is to be done."""

    for_s: Annotated[float, Meta(ge=1, le=DISARMED_S_MAX)] = DISARMED_S


class Watchdog(Protocol):
    """health/watchdog/watchdog.py."""

    def hang(self, name: str) -> None: ...  # noqa: D102
    def disarm(self, for_s: float) -> None: ...  # noqa: D102
    def arm(self) -> None: ...  # noqa: D102
    def seen(self) -> Any: ...  # noqa: D102


class WatchdogVerbs:
    """What it sees follows from each of them, but the history."""

    def __init__(
        self,
        watchdog: Watchdog,
        history: Callable[[], Any],
        resume: Callable[[], Awaitable[None]],
    ) -> None:
        """`resume` leaves safe mode."""
        self._watchdog = watchdog
        self._history = history
        self._resume = resume

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("watchdog.show", "What the watchdog sees.", NoArgs, self._show, "read"),
            again("watchdog.history", "What it did.", NoArgs, self._past, "read"),
            Verb(
                "watchdog.test",
                "Have a part stand still for real, to see it come back.",
                Trial,
                self._test,
                "admin",
                LANE,
                grave=True,
            ),
            again(
                "watchdog.disarm",
                "Have it judge and do nothing, for a while.",
                Disarming,
                self._disarm,
                "admin",
                LANE,
                grave=True,
            ),
            again("watchdog.arm", "End its being disarmed.", NoArgs, self._arm, "admin", LANE),
            again(
                "watchdog.resume",
                "Leave safe mode, with all budgets anew.",
                NoArgs,
                self._leave,
                "admin",
                LANE,
            ),
        ]

    async def _show(self, _: NoArgs, __: Call) -> Any:
        return {"parts": self._watchdog.seen()}

    async def _past(self, _: NoArgs, __: Call) -> Any:
        return {"events": self._history()}

    async def _test(self, args: Trial, _: Call) -> Any:
        self._watchdog.hang(args.part)
        return {"parts": self._watchdog.seen()}

    async def _disarm(self, args: Disarming, _: Call) -> Any:
        self._watchdog.disarm(args.for_s)
        return {"disarmed_s": args.for_s}

    async def _arm(self, _: NoArgs, __: Call) -> Any:
        self._watchdog.arm()
        return {"parts": self._watchdog.seen()}

    async def _leave(self, _: NoArgs, __: Call) -> Any:
        await self._resume()
        return {"parts": self._watchdog.seen()}
