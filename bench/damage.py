"""How soon a store accepts again after its file was damaged, and what of it is saved.

A store that holds `held_records` records of 512 bytes is damaged while it is closed, or for the WAL
as a kill leaves it. Then it is opened, a producer appends one record after the other, a far side
drains, and what was put aside is read to its end.

slowest_accept_vs_2s   of all kinds of damage the longest time without an accepted append, from the
                       call that opens the store on, over 2 s; smaller is better

accepts_after_* is that time for each kind, saved_* and lost_* what the report says (records that
the far side had before the damage was met are not among them), salvage_* how long reading took.
"""

import asyncio
import random
import shutil
import tempfile
import time
from pathlib import Path

import uvloop

from agent.clock import Clock
from agent.config import Store as Settings
from agent.records import Range
from agent.store.store import Store
from bench import report
from bench.store import RECORD, filled
from tests.store.faults import corrupt

HELD, HELD_FULL = 30_000, 1_000_000
IN_THE_WAL = 3_000  # so many more records, which the WAL of a killed agent holds
ACCEPT_S_MAX = 2.0
KINDS: dict[str, corrupt.Damage] = {
    "header": corrupt.header,
    "schema": corrupt.schema,
    "leaf": corrupt.leaf("records"),
    "inner_page": corrupt.interior("records"),
    "half_cut_off": lambda db, _: corrupt.truncate(db, 0.5),
    "emptied": lambda db, _: corrupt.truncate(db, 0),
    "garbage": corrupt.garbage,
}


async def made(folder: Path, rows: int) -> None:
    """A closed store that holds so many records, with all that lies beside it."""
    folder.mkdir()
    filled(folder / "s.db", rows)
    async with Store(Settings(path=str(folder / "s.db")), Clock()):
        pass


async def left_by_a_kill(closed: Path, folder: Path) -> None:
    """A copy of it that was killed with records in the WAL."""
    shutil.copytree(closed, folder.with_suffix(".alive"))
    path = folder.with_suffix(".alive") / "s.db"
    async with Store(Settings(path=str(path)), Clock()) as store:
        for _ in range(IN_THE_WAL // 20):
            await store.intake.append("bench", [RECORD] * 20)
        shutil.copytree(path.parent, folder)
    shutil.rmtree(path.parent)


class Accepts:
    """A producer that appends one record after the other, and the longest it waited."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last = time.perf_counter()

    async def produce(self, store: Store) -> None:
        """For ever."""
        while True:
            await store.intake.append("bench", [RECORD])
            now = time.perf_counter()
            self.longest_s, self._last = max(self.longest_s, now - self._last), now
            await asyncio.sleep(0.002)


async def drained(store: Store) -> None:
    """The far side takes what there is, until what was put aside is read to its end."""
    while True:
        batch = await store.outbox.lease(500, 131_072)
        if batch:
            await store.outbox.acknowledge(batch.name, [Range(1, batch.span.last)])
            if batch.epoch == store.epoch and batch.records[-1:] and len(batch.records) < 100:
                reports = await store.salvage.reports()
                if all(one.state == "done" for one in reports):
                    return


async def measured(kind: str, path: Path) -> dict[str, float]:
    """Open the damaged store; figures of one kind."""
    accepts, began = Accepts(), time.perf_counter()
    async with Store(Settings(path=str(path)), Clock()) as store:
        tasks = [asyncio.create_task(accepts.produce(store))]
        tasks.append(asyncio.create_task(store.salvage.run()))
        await drained(store)
        took_s = time.perf_counter() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found = await store.salvage.reports()
    return {
        f"accepts_after_{kind}_s": accepts.longest_s,
        f"saved_{kind}_records": float(sum(one.saved for one in found)),
        f"lost_{kind}_records": float(sum(one.lost for one in found)),
        f"salvage_{kind}_s": took_s,
    }


async def measure(folder: Path, *, full: bool) -> report.Report:
    """All kinds, one after the other."""
    rows, chance = HELD_FULL if full else HELD, random.Random(1)
    await made(folder / "closed", rows)
    figures = {"held_records": float(rows)}
    for kind, damage in KINDS.items():
        place = folder / kind
        shutil.copytree(folder / "closed", place)
        damage(place / "s.db", chance)
        figures |= await measured(kind, place / "s.db")
        shutil.rmtree(place)
    await left_by_a_kill(folder / "closed", folder / "wal")
    corrupt.frame(folder / "wal" / "s.db-wal", chance)
    figures |= await measured("wal", folder / "wal" / "s.db")
    slowest_s = max(number for key, number in figures.items() if key.startswith("accepts_after_"))
    ratios = {"slowest_accept_vs_2s": report.Ratio.once(slowest_s / ACCEPT_S_MAX, 1.0)}
    return report.Report.of("damage", ratios, figures)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-damage-", dir="var") as folder:
        uvloop.run(measure(Path(folder), full=asked.full)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
