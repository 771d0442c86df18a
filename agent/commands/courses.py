"""How far the twin is with what is wanted: what is remembered of it, and how it is told.

An aspect has one part, or several that wait for nobody among them, as models do by name; each has
tries of its own.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from agent.protocol.commands import Result
from agent.protocol.twin import AspectShown, Standing

CAUSE_CHARS_MAX = 2000  # of all that is told of the parts of one aspect
_RANKED: tuple[Standing, ...] = ("converging", "failed", "conflict", "converged")


class Tries(Struct):
    """How far a part is.

    `command` was ordered last, and `ended` by what is known. `said` is what it is to do, `count`
    how often that was ordered in a row; `steps` counts all orders. `converged`: it was as wanted,
    with no order of ours under way, and nothing was ordered since.
    """

    said: str = ""
    count: int = 0
    steps: int = 0
    command: str = ""
    ended: bool = False
    cause: str = ""
    converged: bool = False

    @property
    def open(self) -> bool:
        """Whether an order may be under way."""
        return bool(self.command) and not self.ended

    def shown(self, standing: Standing) -> AspectShown:
        """With what was ordered last, and why it is not there yet."""
        return AspectShown(standing=standing, command=self.command, cause=self.cause)

    def end(self, result: Result) -> None:
        """What was ordered last has ended so."""
        self.ended = True
        if result.reason == "not_now":  # nothing has failed: another order is first, or a limit
            self.count = 1
        self.cause = result.message or f"{result.id}: {result.state}, and it is not as wanted"


class Course(Struct):
    """How far an aspect is with a version of what is wanted; `step` numbers its orders."""

    version: int = -1
    step: int = 0
    parts: dict[str, Tries] = field(default_factory=dict)

    def anew(self, version: int) -> "Course":
        """With another version: of the former one only what is under way counts yet."""
        open_ = {name: Tries(command=one.command) for name, one in self.parts.items() if one.open}
        return Course(version, parts=open_)

    def undone(self) -> None:
        """A restart of the agent has undone it: it is tried anew, under further numbers."""
        self.parts = {
            name: Tries(command=one.command, ended=one.ended) for name, one in self.parts.items()
        }


def whole(actual: Any, parts: Mapping[str, AspectShown]) -> AspectShown:
    """How an aspect stands: as its worst part; what is under way comes first."""
    first = min(parts.values(), key=_rank, default=AspectShown(standing="converged"))
    causes = [
        f"{name}: {one.cause}" if name else one.cause for name, one in parts.items() if one.cause
    ]
    return AspectShown(
        actual=actual,
        standing=first.standing,
        command=first.command,
        cause="; ".join(causes)[:CAUSE_CHARS_MAX],
    )


def _rank(one: AspectShown) -> int:
    return _RANKED.index(one.standing or "converged")
