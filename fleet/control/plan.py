"""A rollout's plan: what is sent, to whom in which order, and what stops it."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from agent.errors import RequestError
from agent.forms import Share

IN_FLIGHT_MAX = 100_000
MEMBERS_MAX = 100_000
STEPS_MAX = 100
ROLLBACKS = ("agent.rollback", "config.rollback", "model.rollback")
Back = Literal["", "failed", "abort", "both"]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]


class Plan(Struct, frozen=True, kw_only=True):
    """`bounds` are how many devices have it at the end of each step, the last is all of them.

    A step is over when no device that is there is left in it, and at least `quorum` of it (a share)
    have ended; then it soaks for `soak_s`. A device that owes a word for `timeout_s` is late, which
    counts as failed. When more than `failures_max` (a share) of those that ended, of the step or of
    all, have failed, and there are `samples_min` of them, it pauses. `back` is the command that
    takes it back, `back_on` when it is sent: to devices that failed, on abort to all that have it,
    or both.
    """

    name: str
    args: dict[str, Any] = {}
    bounds: list[int]
    soak_s: Seconds = 0.0
    in_flight_max: Annotated[int, Meta(ge=1, le=IN_FLIGHT_MAX)] = 100
    timeout_s: Seconds = 600.0
    failures_max: Share = 0.1
    samples_min: Annotated[int, Meta(ge=1)] = 5
    quorum: Share = 0.5
    seed: str = ""
    back: str = ""
    back_args: dict[str, Any] = {}
    back_on: Back = ""


def ordered(devices: Iterable[str], seed: str) -> list[str]:
    """Each device once, in the order that `seed` gives, on every machine the same."""
    return sorted(
        set(devices), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    )


def way_back(name: str, args: dict[str, Any], id_: str) -> dict[str, Any]:
    """The arguments of the command that takes a rollout's one (`id_`) back.

    Some of the devices to which it is sent took the version back themselves, or never had it: a
    rollback is of what `id_` brought alone, else it would lead to that. Raises RequestError.
    """
    if name not in ROLLBACKS:
        return args
    if args.get("of", id_) != id_:
        raise RequestError(
            f"--rollback-args: {name} of {args['of']!r}; expected this rollout's id, {id_}",
            "leave `of` out: it is filled in",
        )
    return {**args, "of": id_}


def shares(text: str, members: int) -> list[int]:
    """`1,10,50,100`, percentages of so many members, as bounds. Raises RequestError."""
    steps = _ascending(text, "percentages up to 100, as 1,10,50,100", 100.0)
    return _bounds([math.ceil(members * step / 100) for step in steps], members)


def counts(text: str, members: int) -> list[int]:
    """`1,20,200`, numbers of devices, as bounds. Raises RequestError."""
    return _bounds(
        [int(step) for step in _ascending(text, "devices, as 1,20,200", MEMBERS_MAX)], members
    )


def _ascending(text: str, expected: str, most: float) -> list[float]:
    try:
        steps = [float(part) for part in text.split(",")]
    except ValueError:
        steps = []
    rising = all(a < b for a, b in zip([0.0, *steps], [*steps, math.inf], strict=True))
    if not 0 < len(steps) <= STEPS_MAX or not rising or steps[-1] > most:
        raise RequestError(f"the steps {text!r}: expected ascending {expected}", "write them so")
    return steps


def _bounds(steps: Sequence[int], members: int) -> list[int]:
    """Without what is no step for so few, and up to all."""
    return sorted({min(max(step, 1), members) for step in (*steps, members)})
