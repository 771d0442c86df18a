"""Takes records into a store as the agent does, each in a commit of its own, and says so after it.

producer.py STORE            one line per record: its number, once it is accepted
producer.py STORE --there    the numbers that are there, the ledger, and what does not add up
"""

import asyncio
import json
import sys
from itertools import count

from agent.clock import Clock
from agent.config import Store as Settings
from agent.records import Balance, RecordType
from agent.store.intake import Durability, New
from agent.store.store import Store

STREAM = "cut.records"
FILL = "x" * 280


async def produce(path: str) -> None:
    """For ever; a record's number is its seq."""
    async with Store(Settings(path=path), Clock()) as store:
        balance = (await store.ledger.balances()).get(STREAM)
        for number in count(1 + (balance.produced if balance else 0)):
            body = json.dumps({"number": number, "fill": FILL}).encode()
            new = [New(RecordType.WATCHDOG, body)]
            receipt = await store.intake.append(STREAM, new, Durability.SYNC)
            assert receipt.durability is Durability.SYNC
            print(receipt.last, flush=True)


async def there(path: str) -> None:
    """One JSON document: `numbers` that are there as they were written, `ledger`, `faults`."""
    async with Store(Settings(path=path), Clock()) as store:
        balance = (await store.ledger.balances()).get(STREAM, Balance(0, 0, 0, {}))
        numbers: list[int] = []
        first: int | None = 1 if balance.produced else None
        while first:
            page = await store.inventory.page((store.epoch, STREAM), first, 1000)
            numbers += [one.seq for one in page.records]
            first = page.next
        faults = await store.ledger.faults()
        aside = [one.name for one in await store.salvage.reports()]
    ledger = {"produced": balance.produced, "held": balance.held, "dropped": balance.dropped}
    print(json.dumps({"numbers": numbers, "ledger": ledger, "faults": faults, "aside": aside}))


asyncio.run((there if "--there" in sys.argv else produce)(sys.argv[1]))
