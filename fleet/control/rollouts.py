"""Rollouts, as people order them: begun, paused, gone on with, given up.

Limits  : MEMBERS_MAX devices in one. What is over is removed after a while (`forget`).
Format  : sql; a member's command has the rollout's id, its way back the same with `.back` behind.
          All commands are entered (and signed) when it starts, so the controller holds no key.
Recovery: what is decided is committed before it is published; who goes on, goes on from there.
"""

from collections.abc import Sequence

import msgspec

from agent.errors import NotNow, ProtocolError, RequestError
from agent.protocol.envelope import from_json
from agent.words import counted
from fleet.control import book
from fleet.control.driving import ACTIVE, do, drive, turn
from fleet.control.lease import alone
from fleet.control.orders import Order
from fleet.control.plan import MEMBERS_MAX, Plan
from fleet.control.policy import Pause
from fleet.control.standing import Rollout, back_id, read
from fleet.store.database import Transaction

_INSERT = """
INSERT INTO rollouts (id, state, cause, plan, step, judged_us, made_us, changed_us)
VALUES ($1, 'running', '', $2, 0, $3, $3, $3)
"""
_WITHDRAW = """
UPDATE commands SET state = 'withdrawn', due_us = NULL, ended_us = $2, changed_us = $2
WHERE id = $1 AND rollout = $1 AND state IN ('planned', 'waiting', 'sent')
"""
_JUDGED = "UPDATE rollouts SET plan = $2, judged_us = $3 WHERE id = $1"
_OVER = "SELECT id FROM rollouts WHERE state IN ('finished', 'aborted') AND changed_us < $1"


async def start(
    transaction: Transaction,
    id_: str,
    plan: Plan,
    orders: Sequence[Order],
    backs: Sequence[Order],
    now_us: int,
) -> None:
    """Begin a rollout; the orders in the order of its members. Raises NotNow, RequestError."""
    if not 0 < len(orders) <= MEMBERS_MAX:
        raise RequestError(
            f"a rollout to {counted(len(orders), 'device')}; expected 1 to {MEMBERS_MAX:,}",
            "choose others",
        )
    if await transaction.fetch("SELECT 1 FROM rollouts WHERE id = $1", id_):
        raise NotNow(f"there is a rollout {id_} already", "choose another --id")
    await transaction.execute(_INSERT, id_, msgspec.json.encode(plan).decode(), now_us)
    rows = [(id_, place, one.device) for place, one in enumerate(orders)]
    await transaction.copy("members", ("rollout", "place", "device"), rows)
    await book.add(transaction, [*orders, *backs], now_us, id_)
    await drive(transaction, id_, now_us)


async def pause(transaction: Transaction, id_: str, cause: str, now_us: int) -> None:
    """Give the command to nobody else. Raises NotThere, NotNow."""
    rollout = await _in_state(transaction, id_, ("running",))
    await do(transaction, rollout, Pause(cause), now_us)


async def resume(
    transaction: Transaction, id_: str, now_us: int, failures_max: float | None = None
) -> None:
    """Go on; what failed so far is forgiven. Raises NotThere, NotNow, RequestError."""
    rollout = await _in_state(transaction, id_, ("paused",))
    plan = rollout.plan
    if failures_max is not None:
        plan = checked(msgspec.structs.replace(plan, failures_max=failures_max))
    text = msgspec.json.encode(plan).decode()
    await transaction.execute(_JUDGED, id_, text, now_us + 1)
    await turn(transaction, id_, "running", "", now_us)
    await drive(transaction, id_, now_us)


async def abort(transaction: Transaction, id_: str, cause: str, now_us: int) -> None:
    """Give it to nobody else, ever; send the way back where the plan says so.

    Raises NotThere, NotNow.
    """
    await _in_state(transaction, id_, ACTIVE)
    await transaction.execute(_WITHDRAW, id_, now_us)
    await turn(transaction, id_, "aborted", cause, now_us)
    await drive(transaction, id_, now_us)


async def _in_state(transaction: Transaction, id_: str, states: Sequence[str]) -> Rollout:
    await alone(transaction)
    rollout = await read(transaction, id_, change=True)
    if rollout.state not in states:
        raise NotNow(
            f"{id_} is {rollout.state}; expected {' or '.join(states)}",
            f"`holdfast-fleet rollout show {id_}` says why",
        )
    return rollout


def checked(plan: Plan) -> Plan:
    """A plan whose numbers are within their bounds. Raises RequestError."""
    try:
        return from_json(msgspec.json.encode(plan), Plan)
    except ProtocolError as error:
        raise RequestError(f"the rollout's plan: {error}", "see `rollout start --help`") from error


async def forget(transaction: Transaction, before_us: int) -> None:
    """Remove what was over before then, with all its commands."""
    over = [row[0] for row in await transaction.fetch(_OVER, before_us)]
    if over:
        ids = [*over, *map(back_id, over)]
        await transaction.execute(
            "DELETE FROM commands WHERE id = ANY($1) AND rollout = ANY($2)", ids, over
        )
        await transaction.execute("DELETE FROM members WHERE rollout = ANY($1)", over)
        await transaction.execute("DELETE FROM rollouts WHERE id = ANY($1)", over)
