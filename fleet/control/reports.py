"""What became of a rollout, counted, with the names of the bad devices."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from fleet.control.plan import Plan
from fleet.control.standing import back_id, read, tally
from fleet.store.database import Transaction

NAMED_MAX = 10_000  # bad devices, and devices that are away; the counts have all of them
_MEMBERS = """
SELECT m.device, c.state, c.reason, c.message, m.late_us, coalesce(b.state, '')
FROM members m JOIN commands c ON c.device = m.device AND c.id = m.rollout
LEFT JOIN commands b ON b.device = m.device AND b.id = $2
LEFT JOIN presences p ON p.device = m.device WHERE m.rollout = $1 AND ({which})
ORDER BY m.place LIMIT $3
"""
_BAD = """
(c.state IN ('failed', 'refused', 'interrupted') AND c.reason <> 'too_old')
OR (m.late_us IS NOT NULL AND c.ended_us IS NULL)
"""
_AWAY = "c.state IN ('planned', 'waiting', 'sent') AND NOT coalesce(p.online, TRUE)"


class Member(Struct, frozen=True):
    """A device that is named. `state` is that of its command, or `late`; `back` that of its way
    back, if it was sent one."""

    device: str
    state: str
    reason: str
    message: str
    back: str


class Report(Struct, frozen=True):
    """A rollout, counted as policy.Count says; `steps` are how many devices have it at the end of
    each, `step` is the present one's number, from 1. Times are microseconds since 1970."""

    id: str
    state: str
    cause: str
    name: str
    step: int
    steps: list[int]
    members: int
    counts: dict[str, int]
    failed: list[Member]
    away: list[str]
    made_us: int
    changed_us: int


async def report(transaction: Transaction, id_: str) -> Report:
    """Where it stands, and who is bad. Raises NotThere."""
    rollout = await read(transaction, id_)
    _, _, whole = await tally(transaction, rollout)
    asked = (id_, back_id(id_), NAMED_MAX)
    bad = await transaction.fetch(_MEMBERS.format(which=_BAD), *asked)
    away = await transaction.fetch(_MEMBERS.format(which=_AWAY), *asked)
    counts = msgspec.structs.asdict(whole)
    for name in ("new_good", "new_bad"):
        del counts[name]
    plan = rollout.plan
    return Report(
        *(id_, rollout.state, rollout.cause, plan.name, rollout.step + 1, plan.bounds, whole.size),
        *(counts, [_member(row, plan) for row in bad], [row[0] for row in away]),
        *(rollout.made_us, rollout.changed_us),
    )


def _member(row: Sequence[Any], plan: Plan) -> Member:
    device, state, reason, message, late_us, back = row
    if late_us is not None and state in ("sent", "accepted", "running"):
        said = f"{state}, and no last word within {plan.timeout_s:g} s"
        state, reason, message = "late", "timeout", said
    return Member(device, state, reason, message, "" if back == "planned" else back)
