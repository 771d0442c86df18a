"""Whether a part moves, and what is due where it does not: pure, every input is an argument.

A part tells how much it has done, and whether it owes a step now. It has moved when the count has
changed, or nothing is owed: who has nothing to do is not dead. All times are of one axis on which
nothing but running time counts (watchdog.py), so a machine that slept, or a debugger, kills nobody.
Who wants a processor that others have is late, as anybody would see, but dead only by its own time.

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
    """What a part says of itself: steps done, whether it owes one, and if not, why not.

    `held_up_s`: for how long so far, by a count that only grows, it could not move for want of a
    processor.
    """

    done: int
    owed: bool
    why: str = ""
    held_up_s: float = 0.0


class Step(Struct, frozen=True):
    """One rung of a ladder: at most `tries` times in `within_s`, then the next one is due.

    After it, nothing is done for `pause_s`, in which it may have its effect (None: for `dead_s` of
    the rule, since what begins anew has as long as what it replaces). What is not done within
    `time_s` is given up. One that `resets` the machine is subject to the budget of the day.
    """

    remedy: str
    tries: int
    within_s: float
    pause_s: float | None
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
    """What is remembered of a part.

    `held_up_s` is for how long it was held up so far; the marks are what that was when it moved
    last, and when the last remedy was begun.
    """

    done: int
    moved_s: float
    why: str = ""
    taken: tuple[Taken, ...] = ()
    held_up_s: float = 0.0
    moved_mark_s: float = 0.0
    taken_mark_s: float = 0.0


def seen(before: Standing | None, reading: Reading, now_s: float) -> Standing:
    """After one more look. What is seen first has moved."""
    done, owed, why, held_up_s = reading
    if before is None:
        return Standing(done, now_s, why, (), held_up_s, held_up_s, held_up_s)
    found = before._replace(done=done, why=why, held_up_s=held_up_s)
    moved = done != before.done or not owed
    return found._replace(moved_s=now_s, moved_mark_s=held_up_s) if moved else found


def verdict(rule: Rule, standing: Standing, now_s: float) -> Verdict:
    """How a part is now."""
    if own_still_s(standing, now_s) >= rule.dead_s:
        return Verdict.DEAD
    if now_s - standing.moved_s >= rule.late_s:
        return Verdict.LATE
    lately = [one for one in standing.taken if now_s - one.at_s < FLAPS_S]
    return Verdict.FLAPPING if len(lately) >= FLAPS else Verdict.FINE


def own_still_s(standing: Standing, now_s: float) -> float:
    """For how long a part has not moved, without the time in which it was held up."""
    return now_s - standing.moved_s - (standing.held_up_s - standing.moved_mark_s)


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
    return standing._replace(taken=taken, taken_mark_s=standing.held_up_s)


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
    if not pauses:
        return False
    pause_s = rule.dead_s if pauses[0] is None else pauses[0]
    return now_s - last.at_s - (standing.held_up_s - standing.taken_mark_s) < pause_s


def _left(step: Step, standing: Standing, now_s: float) -> bool:
    """Whether its budget is not spent."""
    spent = [
        one
        for one in standing.taken
        if one.remedy == step.remedy and now_s - one.at_s < step.within_s
    ]
    return len(spent) < step.tries
