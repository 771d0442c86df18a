"""Which power profile is in force: pure, every input is an argument.

A rule of heat or of a battery that has begun to hold does so until there is some way between the
value and its bound (COOLER_C, CHARGED): a board at its bound does not go to and fro. What cannot be
read lets no rule begin, and none that holds end.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from agent.hours import holds_at
from agent.sections.power import Power, PowerRule

COOLER_C = 10.0
CHARGED = 0.1


class Seen(NamedTuple):
    """What is known: the hottest part, what is left of a battery while it is discharged (1: all,
    or there is mains; None: there is none), and the local time, if it is true."""

    hottest_c: float | None = None
    battery_left: float | None = None
    now: datetime | None = None


class Verdict(NamedTuple):
    """The profile in force (None: none), and why, in words that do not change meanwhile."""

    profile: str | None
    why: str = ""


class Governor:
    """Remembers which rules hold."""

    def __init__(self, settings: Power) -> None:
        self._settings = settings
        self._held: Sequence[bool] = [False] * len(settings.rules)

    def judge(self, seen: Seen) -> Verdict:
        """What is in force from now on."""
        rules = self._settings.rules
        self._held = [_holds(rule, seen, was) for rule, was in zip(rules, self._held, strict=True)]
        first = next((rule for rule, held in zip(rules, self._held, strict=True) if held), None)
        return Verdict(first.profile, _why(first)) if first else Verdict(self._settings.profile)


def _holds(rule: PowerRule, seen: Seen, was: bool) -> bool:
    if rule.above_c is not None:
        if seen.hottest_c is None:
            return was
        return seen.hottest_c >= rule.above_c - (COOLER_C if was else 0.0)
    if rule.battery_below is not None:
        if seen.battery_left is None:
            return was
        return seen.battery_left < rule.battery_below + (CHARGED if was else 0.0)
    if seen.now is None or rule.begin is None or rule.end is None:
        return False
    return holds_at(rule.begin, rule.end, seen.now)


def _why(rule: PowerRule) -> str:
    if rule.above_c is not None:
        return f"it has reached {rule.above_c:g} °C"
    if rule.battery_below is not None:
        return f"its battery is below {rule.battery_below:.0%}"
    return f"it is between {rule.begin} and {rule.end}"
