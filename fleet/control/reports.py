"""What became of a rollout and of its way back, counted, with the names of the bad devices."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from agent.protocol.commands import ENDED
from fleet.control.plan import Plan
from fleet.control.standing import Rollout, back_id, read, tally
from fleet.control.words import ALL, BAD, MISSED
from fleet.store.database import Transaction

NAMED_MAX = 10_000  # devices of a kind: bad ones, those that are away; the counts have all of them
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
_BACKS = """
FROM members m JOIN commands c ON c.device = m.device AND c.id = m.rollout
JOIN commands b ON b.device = m.device AND b.id = $2
WHERE m.rollout = $1 AND (b.given_us IS NOT NULL OR (b.state IN ('planned', 'lapsed') AND ({owed})))
AND NOT (b.state = 'withdrawn' AND m.device IN (SELECT device FROM retired))
"""
_COUNTED = f"SELECT b.state, count(*) {_BACKS} GROUP BY 1"
_NAMED = f"""
SELECT m.device, b.state, b.reason, b.message, c.state {_BACKS} AND b.state = ANY($4)
ORDER BY m.place LIMIT $3
"""
_OWED_BY_THE_BAD = """
c.state IN ('failed', 'interrupted')
OR (m.late_us IS NOT NULL AND c.state IN ('accepted', 'running', 'succeeded'))
"""
_OWED_BY_ALL = "c.state IN ('accepted', 'running', 'succeeded', 'failed', 'interrupted')"
_BACK = {
    **dict.fromkeys(ALL, "open"),
    **dict.fromkeys((*BAD, *MISSED), "failed"),
    "succeeded": "succeeded",
}


class Member(Struct, frozen=True):
    """A device that is named. `state` is that of its command, or `late`; `back` that of its way
    back, if it was sent one."""

    device: str
    state: str
    reason: str
    message: str
    back: str


class Returning(Struct, frozen=True):
    """A device that is named for its way back. `state` is that of the way back; `planned`: it is
    sent once the rollout's command has ended there, and the message says so."""

    device: str
    state: str
    reason: str
    message: str


class WayBack(Struct, frozen=True):
    """What became of the command `name`, which takes a rollout's one back, on those that were sent
    it, or are still to be, but for devices that were retired meanwhile: `counts` of `succeeded`,
    `failed`, `open`; the latter two with names."""

    name: str
    counts: dict[str, int]
    failed: list[Returning]
    open: list[Returning]


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
    back: WayBack | None
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
        await _way_back(transaction, rollout),
        *(rollout.made_us, rollout.changed_us),
    )


def _member(row: Sequence[Any], plan: Plan) -> Member:
    device, state, reason, message, late_us, back = row
    if late_us is not None and state in ("sent", "accepted", "running"):
        said = f"{state}, and no last word within {plan.timeout_s:g} s"
        state, reason, message = "late", "timeout", said
    return Member(device, state, reason, message, "" if back == "planned" else back)


async def _way_back(transaction: Transaction, rollout: Rollout) -> WayBack | None:
    """None where the plan has none."""
    plan, asked = rollout.plan, (rollout.id, back_id(rollout.id))
    if not plan.back:
        return None
    which = _owed(rollout)
    counts = dict.fromkeys(("succeeded", "failed", "open"), 0)
    for state, number in await transaction.fetch(_COUNTED.format(owed=which), *asked):
        counts[_BACK[state]] += int(number)
    failed, still = [
        await transaction.fetch(
            _NAMED.format(owed=which),
            *(*asked, NAMED_MAX, [state for state in ALL if _BACK[state] == kind]),
        )
        if counts[kind]
        else ()
        for kind in ("failed", "open")
    ]
    return WayBack(
        *(plan.back, counts),
        *([_returning(rollout.id, *row) for row in rows] for rows in (failed, still)),
    )


def _owed(rollout: Rollout) -> str:
    """Whose way back it is to be, once their command has ended, as policy.decide has it: SQL."""
    owed, back_on = ["FALSE"], rollout.plan.back_on
    if back_on in ("failed", "both"):
        owed.append(_OWED_BY_THE_BAD)
    if rollout.state == "aborted" and back_on in ("abort", "both"):
        owed.append(_OWED_BY_ALL)
    return " OR ".join(owed)


def _returning(id_: str, device: str, state: str, reason: str, message: str, at: str) -> Returning:
    if state == "planned" and at not in ENDED:
        message = f"{id_} has not ended there: it is {at}"
    return Returning(device, state, reason, message)
