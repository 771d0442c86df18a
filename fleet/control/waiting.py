"""Waiting for what others write into the database."""

import asyncio
import time
from collections.abc import Sequence

from fleet.control import book
from fleet.control.book import Kept
from fleet.control.reports import Report, report
from fleet.store.database import Database

POLL_S = 0.2
OVER = ("finished", "paused", "aborted")


async def ended(
    database: Database,
    devices: Sequence[str],
    ids: Sequence[str],
    wait_s: float,
    poll_s: float = POLL_S,
) -> list[Kept]:
    """These orders, once all have ended, or as they are after `wait_s`."""
    until = time.monotonic() + wait_s
    while True:
        async with database.begin() as transaction:
            found = await book.found(
                transaction, devices=devices, ids=ids, most=len(devices) * len(ids)
            )
        if all(one.ended_us is not None for one in found) or time.monotonic() >= until:
            return sorted(found, key=lambda one: (one.device, one.id))
        await asyncio.sleep(poll_s)


async def over(database: Database, id_: str, wait_s: float) -> Report:
    """A rollout, once it does not go on by itself any more, or as it is after `wait_s`."""
    until = time.monotonic() + wait_s
    while True:
        async with database.begin() as transaction:
            found = await report(transaction, id_)
        if found.state in OVER or time.monotonic() >= until:
            return found
        await asyncio.sleep(POLL_S)
