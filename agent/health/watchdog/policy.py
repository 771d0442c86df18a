"""Whether a part moves, and what is due where it does not: pure, every input is an argument.

A part tells how much it has done, and whether it owes a step now. It has moved when the count has
changed, or nothing is owed: who has nothing to do is not dead. All times are of one axis on which
nothing but running time counts (watchdog.py), so a machine that slept, or a debugger, kills nobody.

Limits: TAKEN_MAX remedies of a part are remembered; a budget is never for more.
"""

from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

TAKEN_MAX = 32
FLAPS = 3  # remedies that helped within FLAPS_S, and the part stood still again each time
FLAPS_S = 600.0


class Verdict(StrEnum):
    """What a part is; `flapping` moves now, but only ever for a while."""

    FINE = "fine"
    LATE = "late"
    DEAD = "dead"
    FLAPPING = "flapping"


class Reading(NamedTuple):
    """What a part says of itself: steps done, whether it owes one, and if not, why not."""

    done: int
    owed: bool
    why: str = ""


class Step(Struct, frozen=True):
    """One rung of a ladder: at most `tries` times in `within_s`, then the next one is due.

    After it, nothing is done for `pause_s`, in which it may have its effect. What is not done
    within `time_s` is given up. One that `resets` the machine is subject to the budget of the day.
    """

    remedy: str
    tries: int
    within_s: float
    pause_s: float
    time_s: float = 20.0
    resets: bool = False


class Rule(Struct, frozen=True):
    """Without progress for `late_s` a part is late, for `dead_s` dead; then `steps` are due.

    `steps` are in the order of what they cost. A part that is `spared` is told of once they are
    spent, and nobody is left to starve for it. Raises ValueError where their tries together are
    more than can be remembered.
    """

    late_s: float
    dead_s: float
    steps: tuple[Step, ...]
    spared: bool = False

    def __post_init__(self) -> None:
        if sum(step.tries for step in self.steps) > TAKEN_MAX:
            raise ValueError(f"the tries of a ladder are more than {TAKEN_MAX}")


class Taken(NamedTuple):
    """A remedy that was begun; one that failed has no effect to wait for."""

    remedy: str
    at_s: float
    failed: bool = False


class Standing(NamedTuple):
    """What is remembered of a part."""

    done: int
    moved_s: float
    why: str = ""
    taken: tuple[Taken, ...] = ()


def seen(before: Standing | None, reading: Reading, now_s: float) -> Standing:
    """After one more look. What is seen first has moved."""
    if before is None:
        return Standing(reading.done, now_s, reading.why)
    moved = reading.done != before.done or not reading.owed
    moved_s = now_s if moved else before.moved_s
    return Standing(reading.done, moved_s, reading.why, before.taken)


def verdict(rule: Rule, standing: Standing, now_s: float) -> Verdict:
    """How a part is now."""
    still_s = now_s - standing.moved_s
    if still_s >= rule.dead_s:
        return Verdict.DEAD
    if still_s >= rule.late_s:
        return Verdict.LATE
    lately = [one for one in standing.taken if now_s - one.at_s < FLAPS_S]
    return Verdict.FLAPPING if len(lately) >= FLAPS else Verdict.FINE


def due(rule: Rule, standing: Standing, now_s: float) -> Step | None:
    """What is to be done now for a part; None: it moves, or the last remedy has still time."""
    if verdict(rule, standing, now_s) is not Verdict.DEAD or _resting(rule, standing, now_s):
        return None
    return next((step for step in rule.steps if _left(step, standing, now_s)), None)


def exhausted(rule: Rule, standing: Standing, now_s: float) -> bool:
    """Whether a part is dead, and nothing is left to try: whoever resets machines is to know."""
    return (
        not rule.spared
        and verdict(rule, standing, now_s) is Verdict.DEAD
        and not _resting(rule, standing, now_s)
        and due(rule, standing, now_s) is None
    )


def took(standing: Standing, step: Step, now_s: float) -> Standing:
    """After a remedy was begun."""
    taken = (*standing.taken, Taken(step.remedy, now_s))[-TAKEN_MAX:]
    return standing._replace(taken=taken)


def failed(standing: Standing) -> Standing:
    """After the last remedy has failed."""
    *former, last = standing.taken
    return standing._replace(taken=(*former, last._replace(failed=True)))


def _resting(rule: Rule, standing: Standing, now_s: float) -> bool:
    """Whether the last remedy may still have its effect."""
    if not standing.taken or standing.taken[-1].failed:
        return False
    last = standing.taken[-1]
    pauses = [step.pause_s for step in rule.steps if step.remedy == last.remedy]
    return bool(pauses) and now_s - last.at_s < pauses[0]


def _left(step: Step, standing: Standing, now_s: float) -> bool:
    """Whether its budget is not spent."""
    spent = [
        one
        for one in standing.taken
        if one.remedy == step.remedy and now_s - one.at_s < step.within_s
    ]
    return len(spent) < step.tries
