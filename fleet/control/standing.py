"""Where a rollout stands, as the database has it; what policy.py decides on."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.errors import NotThere
from fleet.control.plan import Plan
from fleet.control.policy import Count, Standing
from fleet.store.database import Transaction

_ROW = """
SELECT state, cause, plan, step, settled_us, judged_us, made_us, changed_us FROM rollouts
WHERE id = $1
"""
_TALLY = """
SELECT m.place >= $2 AND m.place < $3, m.place < $3,
    CASE WHEN c.reason = 'too_old' THEN 'expired' ELSE c.state END, m.late_us IS NOT NULL,
    coalesce(p.online, TRUE), coalesce(c.ended_us, m.late_us, 0) >= $4, count(*)
FROM members m JOIN commands c ON c.device = m.device AND c.id = m.rollout
LEFT JOIN presences p ON p.device = m.device
WHERE m.rollout = $1 GROUP BY 1, 2, 3, 4, 5, 6
"""
_UNDONE = """
SELECT b.device FROM commands c JOIN commands b ON b.device = c.device AND b.id = $2
WHERE c.id = $1 AND c.rollout = $1 AND c.state = ANY($3) AND b.state = 'planned'
"""
_UNDONE_LATE = """
SELECT b.device FROM commands c JOIN commands b ON b.device = c.device AND b.id = $2
JOIN members m ON m.rollout = $1 AND m.device = c.device
WHERE c.id = $1 AND c.rollout = $1 AND c.state = 'succeeded'
AND m.late_us IS NOT NULL AND b.state = 'planned'
"""


class Rollout(Struct, frozen=True):
    """As the table has it. Times are microseconds since 1970, by this side's clock."""

    id: str
    state: str
    cause: str
    plan: Plan
    step: int
    settled_us: int | None
    judged_us: int
    made_us: int
    changed_us: int


def back_id(id_: str) -> str:
    """Of the command that takes a rollout's one back."""
    return f"{id_}.back"


async def read(transaction: Transaction, id_: str, *, change: bool = False) -> Rollout:
    """One; nobody else changes it in the meantime if it is to be changed. Raises NotThere."""
    rows = await transaction.fetch(f"{_ROW}{' FOR UPDATE' if change else ''}", id_)
    for state, cause, plan, *rest in rows:
        return Rollout(id_, state, cause, msgspec.json.decode(plan, type=Plan), *rest)
    raise NotThere(f"there is no rollout {id_}", "`holdfast-fleet rollout ls` lists them")


async def ids(transaction: Transaction, states: Sequence[str] = ()) -> list[str]:
    """Those in these states, or all, the newest first."""
    where = "WHERE state = ANY($1)" if states else ""
    sql = f"SELECT id FROM rollouts {where} ORDER BY made_us DESC, id"
    return [row[0] for row in await transaction.fetch(sql, *([list(states)] if states else []))]


async def tally(transaction: Transaction, rollout: Rollout) -> tuple[Count, Count, Count]:
    """The members of the step, those up to its end, and all."""
    first, end = [0, *rollout.plan.bounds][rollout.step : rollout.step + 2]
    found = Count(), Count(), Count()
    asked = (rollout.id, first, end, rollout.judged_us)
    for in_step, within, state, late, online, new, number in await transaction.fetch(
        _TALLY, *asked
    ):
        flags = {"late": bool(late), "online": bool(online), "new": bool(new)}
        for count, belongs in zip(found, (in_step, within, True), strict=True):
            if belongs:
                count.add(state, int(number), **flags)
    return found


async def standing(transaction: Transaction, rollout: Rollout) -> Standing:
    """All that the policy asks for."""
    counts = await tally(transaction, rollout)
    at = (rollout.state, rollout.step, rollout.settled_us, *counts)
    if not rollout.plan.back_on:
        return Standing(*at)
    some, everybody = await undone(transaction, rollout.id), list[str]()
    if rollout.state == "aborted":
        everybody = await undone(transaction, rollout.id, everybody=True)
    return Standing(*at, len(some), len(everybody))


async def undone(transaction: Transaction, id_: str, *, everybody: bool = False) -> list[str]:
    """Whom the way back is to be sent: those that failed or were late, or everybody who has it.

    Nobody whose command has not ended: a device that is still at it refuses, and an id has one
    effect, so that word would be its last. It is sent once the command has ended.
    """
    states = ["failed", "interrupted", *(["succeeded"] if everybody else [])]
    rows = list(await transaction.fetch(_UNDONE, id_, back_id(id_), states))
    if not everybody:
        rows += await transaction.fetch(_UNDONE_LATE, id_, back_id(id_))
    return [row[0] for row in rows]
