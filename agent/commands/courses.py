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
NOT_NOW = ("not_now", "full")  # nothing has failed: another order is first, or a limit
DOUBLED_MAX = 10
_RANKED: tuple[Standing, ...] = ("converging", "failed", "conflict", "converged")


class Tries(Struct):
    """How far a part is.

    `command` was ordered last, and `ended` by what is known. `said` is what it is to do, `count`
    how often that was carried out in vain; `steps` counts all orders that were carried out.
    `waits`: how often in a row it could not be done as things stand. `converged`: it was as wanted,
    with no order of ours under way, and nothing was ordered since.
    """

    said: str = ""
    count: int = 0
    steps: int = 0
    waits: int = 0
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
        if result.reason in NOT_NOW:
            self.waits += 1
        else:
            self.count, self.steps, self.waits = self.count + 1, self.steps + 1, 0
        self.cause = result.message or f"{result.id}: {result.state}, and it is not as wanted"

    def pause_s(self, least_s: float, most_s: float) -> float:
        """Before it is ordered again: `least_s` after the first time in vain, `most_s` after each
        later one; where it could not be done as things stand, twice as long each time."""
        if self.waits:
            return min(least_s * (1 << min(self.waits - 1, DOUBLED_MAX)), most_s)
        return (0.0, least_s, most_s)[min(self.count, 2)]


class Course(Struct):
    """How far an aspect is with a document: its version, and who signed it ('': nobody; None: an
    older version of the agent kept this, and did not say).

    `step` numbers the orders, on from one document to the next: two may have the same version.
    """

    version: int = -1
    by: str | None = None
    step: int = 0
    parts: dict[str, Tries] = field(default_factory=dict)

    def anew(self, version: int, by: str) -> "Course":
        """With another document: of the former one only what is under way counts yet."""
        open_ = {name: Tries(command=one.command) for name, one in self.parts.items() if one.open}
        return Course(version, by, self.step, open_)

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
