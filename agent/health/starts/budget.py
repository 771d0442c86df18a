"""How often the agent and its machine may begin anew by themselves, and safe mode. Pure.

What a person, or the power, has done costs nothing. What costs:

    a restart   the agent crashed or hung, within one boot of the machine
    a reset     a watchdog, a crash or the agent itself had the machine begin anew
    a doubt     the machine began anew for an unknown cause, and the run before was shorter than
                SHORT_S: a loop of resets has short runs, and so has a line that is bad for an hour.
                DOUBTS of them count as one reset

As many restarts within `loop_s`, or as many resets within DAY_S, as the limits say, and the agent
is in safe mode from that start on. It leaves by itself after a time that doubles with each entry,
up to DOUBLED_MAX times, until it stayed out of it for DAY_S; each crash in it begins that time
anew. Who leaves it has all budgets anew.

Time here is running time: a sum over boots that no wall clock has a part in, always less than what
really went by, for nobody counts while the power is away (starts.py).
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.health.starts.causes import Cause, Run, Seconds, Verdict

DAY_S = 86_400.0
SHORT_S = 600.0
STARTLIMIT_S = 600.0  # StartLimitIntervalSec of the unit
# Ten starts that wait for so long take longer than that; and one less than TimeoutStartSec.
PAUSE_S = 75.0
RESTARTS_KEPT = 100
RESETS_KEPT = 64  # more than may be allowed
# A loop still ends in safe mode, after three times as many starts; and a bad line may go down as
# often. Nothing else tells them apart.
DOUBTS = 3
DOUBLED_MAX = 4
Kind = Literal["restart", "reset", "doubt"]


class Spent(Struct, frozen=True):
    """A start that cost something, and when, in running time."""

    kind: Kind
    at_s: Seconds


class Safe(Struct, frozen=True):
    """Safe mode: why, and since when it has gone well in it, in running time."""

    why: str
    since_s: Seconds


class Account(Struct, frozen=True):
    """What is remembered. `entered`: how often in a row; `left_s`: when it left safe mode last."""

    spent: tuple[Spent, ...] = ()
    safe: Safe | None = None
    entered: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    left_s: Seconds = 0.0


class Limits(Struct, frozen=True):
    """`resets_max` in DAY_S; `safe_s`: after how long it leaves safe mode, the first time.

    `restarts_max` in `loop_s`: sooner than systemd's StartLimit, which is 10 starts in 600 s.
    `pause_s` is for how long a start waits where the budgets are spent, and it still loops.
    """

    resets_max: int
    safe_s: float
    restarts_max: int = 5
    loop_s: float = 900.0
    pause_s: float = 0.0


def cost(verdict: Verdict, last: Run | None) -> Kind | None:
    """What a start costs; None: nothing."""
    if not verdict.reset:
        return "restart" if verdict.cause in (Cause.CRASH, Cause.HUNG) else None
    if verdict.cause in (Cause.WATCHDOG, Cause.CRASH, Cause.HUNG):
        return "reset"
    short = last is not None and last.alive_s - last.began_s < SHORT_S
    return "doubt" if verdict.cause is Cause.UNKNOWN and short else None


def within(account: Account, kind: Kind, span_s: float, now_s: float) -> int:
    """How many of a kind there were in the last `span_s`."""
    return sum(one.kind == kind and now_s - one.at_s < span_s for one in account.spent)


def clamped(account: Account, now_s: float) -> Account:
    """As a book that was damaged may not have it: a time to come would count for ever."""
    spent = tuple(Spent(one.kind, min(one.at_s, now_s)) for one in account.spent)
    safe = account.safe and replace(account.safe, since_s=min(account.safe.since_s, now_s))
    return replace(account, spent=spent, safe=safe, left_s=min(account.left_s, now_s))


def loops(account: Account, limits: Limits, now_s: float) -> bool:
    """Whether the agent begins anew again and again."""
    return within(account, "restart", limits.loop_s, now_s) >= limits.restarts_max


def resets_left(account: Account, limits: Limits, now_s: float) -> int:
    """How many resets there may still be."""
    doubts = within(account, "doubt", DAY_S, now_s)
    return max(0, limits.resets_max - within(account, "reset", DAY_S, now_s) - doubts // DOUBTS)


def after_start(account: Account, kind: Kind | None, limits: Limits, now_s: float) -> Account:
    """After a start that cost this."""
    if kind is None:
        return account
    account = replace(account, spent=_kept((*account.spent, Spent(kind, now_s)), now_s))
    if account.safe:
        return replace(account, safe=replace(account.safe, since_s=now_s))
    if resets_left(account, limits, now_s) == 0:
        why = f"the machine began anew {_machine(account, now_s)} within a day of running"
    elif loops(account, limits, now_s):
        minutes = limits.loop_s / 60
        why = f"the agent began anew {limits.restarts_max} times within {minutes:.0f} minutes"
    else:
        return account
    in_a_row = account.entered > 0 and now_s - account.left_s < DAY_S
    entered = account.entered + 1 if in_a_row else 1
    return replace(account, safe=Safe(why, now_s), entered=entered)


def stay_s(account: Account, limits: Limits) -> float:
    """For how long it has to go well in safe mode, until it is left."""
    return limits.safe_s * (1 << min(max(account.entered - 1, 0), DOUBLED_MAX))


def leaves_in_s(account: Account, limits: Limits, now_s: float) -> float | None:
    """When safe mode is left; None: it is not in it."""
    if account.safe is None:
        return None
    return max(0.0, account.safe.since_s + stay_s(account, limits) - now_s)


def left(account: Account, now_s: float) -> Account:
    """Out of safe mode by itself, with all budgets anew; the next entry lasts longer."""
    return Account(entered=account.entered, left_s=now_s)


def resumed(now_s: float) -> Account:
    """A person said that all is well."""
    return Account(left_s=now_s)


def _machine(account: Account, now_s: float) -> str:
    """How often it began anew, in words."""
    resets, doubts = (within(account, kind, DAY_S, now_s) for kind in ("reset", "doubt"))
    return f"{resets + doubts} times" + (f" ({doubts} of them for no known cause)" * bool(doubts))


def _kept(spent: tuple[Spent, ...], now_s: float) -> tuple[Spent, ...]:
    lately = [one for one in spent if now_s - one.at_s < DAY_S]
    bounds = {"restart": RESTARTS_KEPT, "reset": RESETS_KEPT, "doubt": DOUBTS * RESETS_KEPT}
    kept = list[Spent]()
    for kind, most in bounds.items():
        kept += [one for one in lately if one.kind == kind][-most:]
    return tuple(sorted(kept, key=lambda one: one.at_s))
