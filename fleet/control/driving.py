"""What the policy decides, done in the database; what follows from it is published later."""

import logging
from typing import assert_never

from fleet.control.policy import (
    US,
    Action,
    Advance,
    Finish,
    Pause,
    Release,
    Settle,
    TakeBack,
    decide,
)
from fleet.control.standing import Rollout, back_id, read, standing, undone
from fleet.store.database import Transaction

log = logging.getLogger("control")
ROUNDS_MAX = 10  # decisions that follow one from the other, in one transaction
ACTIVE = ("running", "paused")
_NEXT = """
SELECT m.device FROM members m JOIN commands c ON c.device = m.device AND c.id = m.rollout
LEFT JOIN presences p ON p.device = m.device
WHERE m.rollout = $1 AND m.place < $2 AND c.state = 'planned' AND coalesce(p.online, TRUE)
ORDER BY m.place LIMIT $3
"""
_RELEASE = """
UPDATE commands SET state = 'waiting', due_us = $2, given_us = $2, changed_us = $2
WHERE id = $1 AND device = ANY($3) AND state = 'planned'
"""
_HOLD = """
UPDATE commands SET state = 'planned', due_us = NULL, changed_us = $2
WHERE id = $1 AND rollout = $1 AND state = 'waiting'
"""
_LATE = """
UPDATE members SET late_us = $2 WHERE rollout = $1 AND late_us IS NULL AND EXISTS (
    SELECT 1 FROM commands c WHERE c.device = members.device AND c.id = $1 AND c.ended_us IS NULL
    AND c.state IN ('sent', 'accepted', 'running') AND c.asked_us <= $3)
"""
_TURN = "UPDATE rollouts SET state = $2, cause = $3, changed_us = $4 WHERE id = $1"
_STEP = "UPDATE rollouts SET step = $2, settled_us = $3, changed_us = $4 WHERE id = $1"


async def drive(transaction: Transaction, id_: str, now_us: int) -> None:
    """Do what the policy decides, until it has nothing to say. Raises NotThere."""
    for _ in range(ROUNDS_MAX):
        rollout = await read(transaction, id_, change=True)
        if rollout.state in ACTIVE:
            since_us = now_us - int(rollout.plan.timeout_s * US)
            await transaction.execute(_LATE, id_, now_us, since_us)
        actions = decide(rollout.plan, await standing(transaction, rollout), now_us)
        for action in actions:
            await do(transaction, rollout, action, now_us)
        if not actions:
            return


async def do(transaction: Transaction, rollout: Rollout, action: Action, now_us: int) -> None:
    """One decision."""
    id_, step = rollout.id, rollout.step
    match action:
        case Release(number):
            asked = (id_, rollout.plan.bounds[step], number)
            devices = [row[0] for row in await transaction.fetch(_NEXT, *asked)]
            await transaction.execute(_RELEASE, id_, now_us, devices)
        case TakeBack(everybody):
            devices = await undone(transaction, id_, everybody=everybody)
            await transaction.execute(_RELEASE, back_id(id_), now_us, devices)
        case Pause(cause):
            await turn(transaction, id_, "paused", cause, now_us)
            await transaction.execute(_HOLD, id_, now_us)
        case Finish():
            await turn(transaction, id_, "finished", "", now_us)
        case Settle():
            await transaction.execute(_STEP, id_, step, now_us, now_us)
        case Advance():
            await transaction.execute(_STEP, id_, step + 1, None, now_us)
        case _:
            assert_never(action)


async def turn(transaction: Transaction, id_: str, state: str, cause: str, now_us: int) -> None:
    """Into another state."""
    log.info("%s is %s%s", id_, state, f": {cause}" if cause else "")
    await transaction.execute(_TURN, id_, state, cause, now_us)
