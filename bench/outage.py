"""A long outage: records pile up in the store for weeks, then a link drains them.

The store is the product's, in this process: 64 producers fill it, 16 records an await, 512 bytes a
record, one stream. Then a link takes leases of the uplink's size (500 records, 128 KiB of payload)
while at most `link.unacked_bytes_max` is out, and a far side acknowledges, cumulatively, all that
has gone out whenever that is LEASES_AN_ACK more. `store.bytes_max` is above what comes.

append_5m_held_vs_empty  64 producers, one record an await, into the store at the end of filling
                         against the same into an empty one; five million with --full, else `held`
rss_growth_ratio         the most resident memory of this process while it fills and drains, over
                         what it was with a tenth held; smaller is better. Measured once.
drain_vs_bare            records leased and acknowledged per second against one SQLite connection
                         that reads and deletes as many rows in steps of the same sizes; no ledger
file_after_vs_peak       the file's bytes once the store has given its free pages back, over those
                         at its peak; smaller is better. Measured once.

The rest of the drain goes on beside eight producers of one record every TRICKLE_S: their awaits are
append_draining_*. rss_slope_* is the straight line through the readings. `shrink_s` is from the
last ack to the file's last page given back; the agent's own looks at the ledger are what the store
tidies up after, and one here takes their place. The ledger balances at the end, or this fails.
"""

import asyncio
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import uvloop
from msgspec import Struct

from agent.clock import Clock
from agent.config import Link as Settings
from agent.config import Store as StoreSettings
from agent.records import Range
from agent.store import streams
from agent.store.store import Store
from agent.sync.up.sending import HEADER_ROOM_BYTES
from bench import report
from bench.store import RECORD, filled

HELD, HELD_FULL = 200_000, 5_000_000
PAIRS, PAIRS_FULL = 9, 31
SIDE_S = 0.25  # how long one side of a pair runs, about
SLICE = 8_000  # records that one side of a pair drains
DISK_BYTES_PER_RECORD = 1_000  # of the file at its peak, with room for the bare side's
LEASES_AN_ACK = 8  # the far side answers when so many more have gone out, or nothing more comes
MIB = 1 << 20
LOOKS = 200  # readings of the memory while filling, and while draining
TRICKLE_S = 0.01
SHRUNK_S_MAX = 60.0
SHRUNK_BYTES = 2 * MIB  # a store that holds nothing, with the free pages it keeps


class Memory:
    """Resident memory of this process in bytes, read when records have come or gone."""

    def __init__(self, every: int) -> None:
        self.readings: list[tuple[int, int]] = []  # records so far, bytes
        self._every = every
        self._process = psutil.Process()

    def look(self, records: int) -> None:
        """Read it, if it is time to."""
        if not self.readings or records - self.readings[-1][0] >= self._every:
            self.readings.append((records, self._process.memory_info().rss))

    @property
    def slope_bytes(self) -> float:
        """Growth a record."""
        slope, _ = statistics.linear_regression(*zip(*self.readings, strict=True))
        return slope


class Slice(Struct):
    """One stretch of draining: the records of each lease and of each ack, and its seconds."""

    leases: list[int]
    acks: list[int]
    elapsed_s: float = 0.0

    @property
    def rate(self) -> float:
        """Records acknowledged per second."""
        return sum(self.acks) / self.elapsed_s


class Link:
    """Drains the stream `bench` as the uplink does, with a far side that stores at once."""

    def __init__(self, store: Store) -> None:
        self.settled = 0  # the mark of the last ack
        self._store = store
        self._settings = Settings(broker_url=None, ack_from="broker")
        self._leased = self._leases_out = 0
        self._sent = asyncio.Event()
        self._acked = asyncio.Event()

    async def drain(self, through: int, look: Callable[[int], None] = lambda _: None) -> Slice:
        """Until every record up to seq `through` is acknowledged, and little more."""
        done, began = Slice([], []), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease(through, done))
            group.create_task(self._acknowledge(through, done, look))
        done.elapsed_s = time.perf_counter() - began
        return done

    async def _lease(self, through: int, done: Slice) -> None:
        room = self._settings.payload_bytes_max - HEADER_ROOM_BYTES
        out_max = self._settings.unacked_bytes_max // len(RECORD.body)
        while self._leased < through:
            self._acked.clear()
            if self._leased - self.settled >= out_max:
                await self._acked.wait()
                continue
            batch = await self._store.outbox.lease(self._settings.batch_records_max, room)
            if batch is None:
                raise AssertionError(f"nothing to lease after {self._leased}, {through} are held")
            if batch.span != Range(self._leased + 1, self._leased + len(batch.records)):
                raise AssertionError(f"{batch.span} after {self._leased}")
            self._leased = batch.span.last
            done.leases.append(len(batch.records))
            self._leases_out += 1
            if self._leases_out >= LEASES_AN_ACK or self._leased >= through:
                self._sent.set()

    async def _acknowledge(self, through: int, done: Slice, look: Callable[[int], None]) -> None:
        while self.settled < through:
            await self._sent.wait()
            self._sent.clear()
            mark, self._leases_out = Range(1, self._leased), 0
            now = await self._store.outbox.acknowledge((self._store.epoch, "bench"), [mark])
            if now.delivered != now.mark - self.settled:
                raise AssertionError(f"{now} after {self.settled}")
            self.settled = now.mark
            done.acks.append(now.delivered)
            self._acked.set()
            look(self.settled)


class Bare:
    """The reference: read and delete, oldest first, in steps of given sizes."""

    def __init__(self, path: Path, rows: int) -> None:
        filled(path, rows)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._read = self._deleted = 0

    def run(self, like: Slice) -> float:
        """Records per second."""
        began = time.perf_counter()
        leases = iter(like.leases)
        for acked in like.acks:
            self._deleted += acked
            while self._read < self._deleted:
                self._lease(next(leases))
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "DELETE FROM records WHERE id <= ?", (streams.key(1, self._deleted),)
            )
            self._connection.execute("COMMIT")
        return sum(like.acks) / (time.perf_counter() - began)

    def _lease(self, count: int) -> None:
        self._connection.execute(
            "SELECT * FROM records WHERE id > ? ORDER BY id LIMIT ?",
            (streams.key(1, self._read), count),
        ).fetchall()
        self._read += count

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()


def made(path: Path) -> Store:
    """A store without a bound that matters."""
    return Store(StoreSettings(path=str(path), bytes_max=1 << 40), Clock())


async def produce(store: Store, count: int, batch: int, look: Callable[[int], None]) -> float:
    """64 producers append so many records, at least; records per second."""
    awaits, last, records = -(-count // 64 // batch), 0, [RECORD] * batch

    async def one() -> None:
        nonlocal last
        for _ in range(awaits):
            last = max(last, (await store.intake.append("bench", records)).last)
            look(last)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(64)))
    return 64 * awaits * batch / (time.perf_counter() - began)


async def against_empty(store: Store, folder: Path, pairs: int) -> report.Ratio:
    """Appends into the store as it is, and into an empty one, in turn."""
    ratios = []
    rate = await produce(store, 2_000, 1, lambda _: None)
    count = round(rate * SIDE_S)
    for number in range(pairs):
        async with made(folder / f"empty-{number}.db") as empty:
            await produce(empty, 5_000, 1, lambda _: None)  # until the WAL has its full length
            ours = await produce(store, count, 1, lambda _: None)
            ratios.append(ours / await produce(empty, count, 1, lambda _: None))
        for left in folder.glob(f"empty-{number}.db*"):
            left.unlink()
    return report.Ratio.of(ratios, 0.85)


async def against_bare(link: Link, folder: Path, pairs: int) -> report.Ratio:
    """Slices of the drain, and of the bare loop's, in turn."""
    bare = Bare(folder / "bare.db", SLICE * 2 * pairs)
    ratios = []
    for _ in range(pairs):
        ours = await link.drain(link.settled + SLICE)
        ratios.append(ours.rate / bare.run(ours))
    bare.close()
    return report.Ratio.of(ratios)


async def drained(
    store: Store, link: Link, look: Callable[[int], None]
) -> tuple[Slice, list[float]]:
    """All that is held now, beside a trickle of new records, then the trickle; its awaits."""
    calls_s: list[float] = []
    draining = True

    async def trickle() -> None:
        while draining:
            began = time.perf_counter()
            await store.intake.append("bench", [RECORD])
            calls_s.append(time.perf_counter() - began)
            await asyncio.sleep(TRICKLE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(trickle())
        done = await link.drain(await produced(store), look)
        draining = False
    await link.drain(await produced(store))
    return done, calls_s


async def produced(store: Store) -> int:
    """The last seq of the stream."""
    return (await store.ledger.balances())["bench"].produced


async def shrunk(store: Store) -> float:
    """Wait until the file is small again; how long that took. Raises TimeoutError."""
    began = time.perf_counter()
    async with asyncio.timeout(SHRUNK_S_MAX):
        while store.path.stat().st_size > SHRUNK_BYTES:
            await store.ledger.balances()
            await asyncio.sleep(0.05)
    return time.perf_counter() - began


async def measure(folder: Path, *, full: bool) -> report.Report:
    """Fill, compare, drain, wait."""
    pairs, held = (PAIRS_FULL, HELD_FULL) if full else (PAIRS, HELD)
    found: dict[str, float] = {"held": held}
    ratios: dict[str, report.Ratio] = {}
    filling, draining = Memory(held // LOOKS), Memory(held // LOOKS)
    async with made(folder / "outage.db") as store:
        found["fill_records_per_s"] = await produce(store, held, 16, filling.look)
        ratios["append_5m_held_vs_empty"] = await against_empty(store, folder, pairs)
        peak_bytes = store.path.stat().st_size
        link = Link(store)
        ratios["drain_vs_bare"] = await against_bare(link, folder, pairs)
        draining.look(link.settled)
        done, calls_s = await drained(store, link, draining.look)
        found["shrink_s"] = await shrunk(store)
        found["peak_mib"] = peak_bytes / MIB
        ratios["file_after_vs_peak"] = report.Ratio.once(
            store.path.stat().st_size / peak_bytes, 0.05
        )
        if faults := await store.ledger.faults():
            raise AssertionError(faults)
    ratios["rss_growth_ratio"] = growth(filling, draining, held)
    found |= drain_figures(done, calls_s) | memory_figures(filling, draining)
    return report.Report.of("outage", ratios, found)


def growth(filling: Memory, draining: Memory, held: int) -> report.Ratio:
    """The most, against a tenth held."""
    readings = [*filling.readings, *draining.readings]
    first = next(rss for records, rss in filling.readings if records >= held // 10)
    return report.Ratio.once(max(rss for _, rss in readings) / first, 1.1)


def drain_figures(done: Slice, calls_s: list[float]) -> dict[str, float]:
    """Of the drain beside the trickle."""
    calls = statistics.quantiles(calls_s, n=100)
    return {
        "drain_records_per_s": done.rate,
        "drain_records_per_lease": statistics.mean(done.leases),
        "drain_records_per_ack": statistics.mean(done.acks),
        "append_draining_records_per_s": len(calls_s) / done.elapsed_s,
        "append_draining_p50_ms": calls[49] * 1e3,
        "append_draining_p99_ms": calls[98] * 1e3,
        "append_draining_max_ms": max(calls_s) * 1e3,
    }


def memory_figures(filling: Memory, draining: Memory) -> dict[str, float]:
    """In MiB, and MiB a million records."""
    found = {}
    for phase, memory in (("filling", filling), ("draining", draining)):
        found[f"rss_max_{phase}_mib"] = max(rss for _, rss in memory.readings) / MIB
        found[f"rss_slope_{phase}_mib_per_million"] = memory.slope_bytes * 1e6 / MIB
    return found


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    needed = (HELD_FULL if asked.full else HELD) * DISK_BYTES_PER_RECORD
    if (free := shutil.disk_usage("var").free) < needed:
        raise SystemExit(
            f"the disk of ./var has {free / MIB:,.0f} MiB free, {needed / MIB:,.0f} MiB are needed"
        )
    with tempfile.TemporaryDirectory(prefix="bench-outage-", dir="var") as folder:
        uvloop.run(measure(Path(folder), full=asked.full)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
