"""Devices that are out of the fleet: scrapped, lost, sold.

No selection has them, nothing is ordered of them, and no rollout waits for them. What was stored of
them stays.
"""

from collections.abc import Iterable

from agent.errors import NotNow
from fleet.control.lease import alone, beside
from fleet.store.database import Transaction

NAMED_MAX = 10  # in a message
_RETIRE = """
INSERT INTO retired (device, since_us) VALUES ($1, $2) ON CONFLICT (device) DO NOTHING
"""
_LET_GO = """
UPDATE commands SET state = 'withdrawn', message = 'the device was retired', due_us = NULL,
    ended_us = $2, changed_us = $2 WHERE device = ANY($1) AND ended_us IS NULL
"""
_REINSTATE = "DELETE FROM retired WHERE device = ANY($1)"
_WHICH = "SELECT device FROM retired WHERE device = ANY($1) ORDER BY device"


async def retire(transaction: Transaction, devices: Iterable[str], now_us: int) -> None:
    """They are out; of what they were ordered, no word is waited for any more."""
    await alone(transaction)
    named = sorted(set(devices))
    await transaction.many(_RETIRE, [(device, now_us) for device in named])
    await transaction.execute(_LET_GO, named, now_us)


async def reinstate(transaction: Transaction, devices: Iterable[str]) -> None:
    """They are of the fleet again. What was withdrawn stays so."""
    await transaction.execute(_REINSTATE, sorted(set(devices)))


async def check(transaction: Transaction, devices: Iterable[str]) -> None:
    """Raises NotNow where one of these is out; until this transaction ends, none is retired."""
    await beside(transaction)
    found = [row[0] for row in await transaction.fetch(_WHICH, sorted(set(devices)))]
    if found:
        more = f" and {len(found) - NAMED_MAX:,} more" if len(found) > NAMED_MAX else ""
        raise NotNow(
            f"retired: {', '.join(found[:NAMED_MAX])}{more}",
            "leave them out, or first: holdfast-fleet devices reinstate",
        )
