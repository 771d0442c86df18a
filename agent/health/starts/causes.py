"""Why the agent began: judged from what the last run left behind, and what the hardware says. Pure.

    the same boot     hung      it had ended itself: its stacks, or its watchdog's last word
                      ordered   it had been told to end
                      crash     neither: killed, or a fault
    another boot      as marked its watchdog has noted, just before, that it resets the machine
                      ordered   it had been told to end, as at a shutdown in order
                      watchdog  the hardware says that it reset the machine
                      power     the hardware says so; or nothing else was told, and it reports no
                                reset of its own
                      crash     the kernel panicked; or systemd rebooted after too many starts; or
                                the hardware says that it was software, and nobody had said so
                      unknown   nothing was told, and the hardware does not say

A clean end goes before what the hardware says: many boards have their watchdog reset them where
somebody has them rebooted, and who was told to end has no part in what came after.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

SECONDS_MAX = 1e12  # no clock has run for longer
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
MARK_S = 300.0  # of the machine's time: a reboot that has not come by then does not come
BURST = 10  # StartLimitBurst of the unit
SOFTWARE = "software"


class Cause(StrEnum):
    """Why it began; `hung`: it ended itself, because something in it stood still."""

    POWER = "power"
    WATCHDOG = "watchdog"
    CRASH = "crash"
    HUNG = "hung"
    ORDERED = "ordered"
    UNKNOWN = "unknown"


class Mark(Struct, frozen=True):
    """The machine was about to be rebooted or reset, at `at_s` of that boot's monotonic clock."""

    cause: Cause
    why: str
    at_s: Seconds


Ended = Literal["", "told", "again"]  # by itself, told to, by its watchdog to begin anew


class Run(Struct, frozen=True):
    """A run of the agent as the next one finds it, in seconds of its boot's monotonic clock.

    `alive_s` is its last sign of life.
    """

    boot: str
    began_s: Seconds
    alive_s: Seconds
    ended: Ended = ""
    why: str = ""  # it ended to begin anew, or with an error
    mark: Mark | None = None


class Evidence(NamedTuple):
    """All that is known. `hardware`: what reset the machine; empty: nothing; None: nobody says;
    `software`: neither a watchdog nor the power.

    `hung`: the last run left its stacks; `panicked`: the kernel left its last words, which were not
    there before; `restarts`: how often the agent had begun again within systemd's StartLimit.
    """

    boot: str
    last: Run | None
    hardware: Collection[str] | None
    hung: bool = False
    panicked: bool = False
    restarts: int = 0


class Verdict(NamedTuple):
    """The cause in one word and in a sentence; `reset`: the machine began anew, too."""

    cause: Cause
    why: str
    reset: bool


def judge(evidence: Evidence) -> Verdict:
    """Why the agent began."""
    last = evidence.last
    if last is None:
        return Verdict(Cause.UNKNOWN, "no run before this one is known", reset=False)
    if last.boot == evidence.boot:
        return Verdict(*_within_boot(last, hung=evidence.hung), reset=False)
    return Verdict(*_with_machine(last, evidence), reset=True)


def _within_boot(last: Run, *, hung: bool) -> tuple[Cause, str]:
    if hung:
        return Cause.HUNG, "its loop had stood still, or its end; hung.last.txt has the stacks"
    if last.ended == "again":
        return Cause.HUNG, f"it had ended to begin anew: {last.why}"
    if last.ended == "told":
        return Cause.ORDERED, "it had been told to end"
    if last.why:
        return Cause.CRASH, f"it had ended with an error: {last.why}"
    return Cause.CRASH, "it had ended without a word: it was killed, or a fault ended it"


def _with_machine(last: Run, evidence: Evidence) -> tuple[Cause, str]:
    mark, hardware = last.mark, evidence.hardware
    if mark and last.alive_s - mark.at_s <= MARK_S:
        return mark.cause, mark.why
    if last.ended == "told":
        return Cause.ORDERED, "it had been told to end before the machine went down"
    if own := sorted({*(hardware or ())} - {SOFTWARE}):
        power = "watchdog" not in own and any(one.startswith("power") for one in own)
        said = f"the hardware says what reset the machine: {', '.join(own)}"
        return (Cause.POWER if power else Cause.WATCHDOG), said
    if evidence.panicked:
        return Cause.CRASH, "the kernel panicked: its last words are in pstore"
    if evidence.restarts >= BURST - 1:
        said = f"it had begun {evidence.restarts + 1} times within minutes: systemd rebooted"
        return Cause.CRASH, said
    if hardware:
        return Cause.CRASH, "software reset the machine without a word: a panic, or a forced reboot"
    if hardware is None:
        return Cause.UNKNOWN, "the machine went down without a word, and nothing says why"
    return Cause.POWER, "the machine went down without a word, and its watchdog reset nothing"
