"""Conditions (promise 4): whatever degrades has a name, a since, a cause and a remedy."""

import logging
from typing import Literal

from msgspec import Struct

from agent.changes import Changes
from agent.clock import Clock
from agent.health.names import Name
from agent.words import quoted

log = logging.getLogger("condition")
TEXT_CHARS_MAX = 600  # of a cause, and of a remedy: all that hold go out in each heartbeat
Severity = Literal["note", "warning", "critical"]
Word = Literal["healthy", "degraded", "unhealthy"]


class Condition(Struct, frozen=True):
    """Something that holds now. `subject` is what it is about; `age_s` is how long it has held.

    `since_us` is a wall label; the age is monotonic.
    """

    name: str
    subject: str
    severity: Severity
    cause: str
    remedy: str
    since_us: int
    age_s: float


class Conditions:
    """All that hold now, by (name, subject).

    Bounded: both come from code, config, and what is bounded itself (streams, files put aside);
    what they say is cut at TEXT_CHARS_MAX. `changes` tells of each that begins, is said to have
    another cause, or ends.
    """

    def __init__(self, clock: Clock) -> None:
        self.changes = Changes()
        self._clock = clock
        self._held: dict[tuple[str, str], tuple[Condition, float]] = {}

    def hold(self, name: Name, subject: str, severity: Severity, cause: str, remedy: str) -> None:
        """This condition holds; repeated, it keeps its since and takes the new cause."""
        # They may quote a file's name, or what somebody else said.
        cause, remedy = quoted(cause, TEXT_CHARS_MAX), quoted(remedy, TEXT_CHARS_MAX)
        held = self._held.get((name, subject))
        since_us, begun = (
            (held[0].since_us, held[1])
            if held
            else (int(self._clock.wall() * 1e6), self._clock.monotonic())
        )
        condition = Condition(name, subject, severity, cause, remedy, since_us, 0.0)
        self._held[name, subject] = (condition, begun)
        if held is None or held[0].cause != cause:
            level = logging.INFO if severity == "note" else logging.WARNING
            log.log(level, "%s %s: %s; %s", name, subject, cause, remedy)
            self.changes.tell()

    def clear(self, name: Name, subject: str) -> None:
        """It holds no longer, or never did."""
        if self._held.pop((name, subject), None):
            log.info("%s %s: over", name, subject)
            self.changes.tell()

    def forget(self, *names: Name) -> None:
        """What held under these names was of something that is no more."""
        for name, subject in list(self._held):
            if name in names:
                self._held.pop((name, subject))
                log.info("%s %s: over", name, subject)
                self.changes.tell()

    def all(self) -> list[Condition]:
        """What holds now, the gravest first."""
        now = self._clock.monotonic()
        order = ["critical", "warning", "note"]
        aged = [
            Condition(c.name, c.subject, c.severity, c.cause, c.remedy, c.since_us, now - begun)
            for c, begun in self._held.values()
        ]
        return sorted(aged, key=lambda c: (order.index(c.severity), c.name, c.subject))

    def status(self) -> Word:
        """One word for it all: the gravest condition decides."""
        severities = {c.severity for c, _ in self._held.values()}
        if "critical" in severities:
            return "unhealthy"
        return "degraded" if "warning" in severities else "healthy"
