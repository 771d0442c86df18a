"""Durable appends per second into the store, against the same SQLite used bare.

Our side is the product: Intake and Spool over Database on uvloop, so many producers as tasks of one
loop, each awaiting its receipt before it goes on. The bare side is one connection in one loop with
the same schema and pragmas (WAL, synchronous=FULL): it commits groups of just the sizes that our
side committed in the run before it, rows and nothing else (no ledger, no seq from the file, no
answer to anybody). A record is 512 bytes of body in one stream. All files lie below ./var, on the
disk of the working folder; a RAM disk there would make fsync free and the ratios worthless.

append_64_vs_bare         64 producers, one record an await; larger is better
append_64x16_vs_bare      64 producers, 16 records an await
append_64_vs_bare_slow    as the first, each commit 5 ms longer on both sides: `sleep` right after
                          COMMIT, before any answer, in the store's thread and in the bare loop. The
                          fsyncs of a checkpoint are not lengthened.
await_p50_vs_bare_commit  one producer: median of its awaits over the median of the bare loop's
                          commits of one row; smaller is better
append_1m_held_vs_empty   64 producers into a store that holds a million records (`held_rows`; fewer
                          without --full) against the same into an empty one
audio_chunks_vs_files     64 KiB of sound through Spool.accept against a file each: write, fsync,
                          rename, fsync of the folder. Eight sources at once, on their side each in
                          a thread and a folder of its own
audio_chunks_alone_vs_files  the same with one source: one chunk after the other
append_1, append_8_vs_bare  for information
append_1_volatile_*         one producer, volatile, until the last record is written behind; for
                            information. `*_of_group_bytes`: written bytes over those of append_1

*_written_bytes_per_record is what the kernel counted as to be written to disk (write_bytes of
/proc/self/io) during our side's runs, WAL and checkpoints included. commit_* is the whole
transaction in the store's thread. --full adds other stores (bench/store_peers.py).
"""

import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct

from agent.clock import Clock
from agent.config import Store as Settings
from agent.config import StreamRule
from agent.records import RecordType, Take
from agent.store import schema, streams
from agent.store.bounds import Bounds
from agent.store.database import Database, Work
from agent.store.intake import Durability, Intake, New
from agent.store.spool import Spool
from agent.store.volatile import Volatile
from bench import report, store_peers

RECORD = New(RecordType.SEGMENT, b"x" * 512)
CHUNK = os.urandom(64 * 1024)
AUDIO = {8: "audio_chunks_vs_files", 1: "audio_chunks_alone_vs_files"}  # by sources at once
SLOW_S = 0.005
SIDE_S = 0.25  # how long one side of a pair runs, about
PAIRS, PAIRS_FULL = 9, 60
HELD, HELD_FULL = 300_000, 1_000_000
VOLATILE_ROWS = 20_000
WARM_ROWS = 5_000  # until the WAL has its full length


class Case(Struct, frozen=True):
    """So many producers with so many records an await, each commit longer by `slow_s`."""

    name: str
    key: str
    producers: int
    batch: int = 1
    slow_s: float = 0.0
    target: float | None = None


CASES = [
    Case("append_1", "append_1_vs_bare", 1),
    Case("append_8", "append_8_vs_bare", 8),
    Case("append_64", "append_64_vs_bare", 64, 1, 0.0, 0.5),
    Case("append_64x16", "append_64x16_vs_bare", 64, 16, 0.0, 0.75),
    Case("append_64_slow", "append_64_vs_bare_slow", 64, 1, SLOW_S, 0.85),
]


class Run(Struct, frozen=True):
    """What one side did: rows, seconds in all; rows and seconds of each commit; of each await."""

    rows: int
    elapsed_s: float
    groups: list[int]
    commits_s: list[float]
    calls_s: list[float] = []
    written_bytes: int = 0

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.elapsed_s


class Observed(Database):
    """The product's database; notes the rows and the seconds of each commit, and may slow it."""

    def __init__(self, path: Path, slow_s: float = 0.0) -> None:
        clock = Clock()
        super().__init__(path, clock, Bounds(Settings(path=str(path)), clock, lambda *_: []))
        self.slow_s = slow_s
        self.commits: list[tuple[int, float]] = []

    def _attempt(self, group: list[Work[Any]]) -> bool:
        began = time.perf_counter()
        kept = super()._attempt(group)
        if self.slow_s:
            time.sleep(self.slow_s)
        rows = sum(len(work.item[2]) if work.item else 1 for work in group)
        if group[0].writes:
            self.commits.append((rows, time.perf_counter() - began))
        return kept


class Bare:
    """The reference: rows into the product's table, in transactions of given sizes."""

    def __init__(self, path: Path, slow_s: float = 0.0) -> None:
        self._connection = opened(path)
        self._slow_s = slow_s
        self._seq = 0

    def run(self, groups: list[int]) -> Run:
        """One transaction a group."""
        commits_s, stamp, crc = [], Clock().stamp(), 4_000_000_000
        head, tail = (RECORD.type, stamp.boot, stamp.mono_ns, stamp.wall_us), (0, 0, RECORD.body)
        execute, began = self._connection.execute, time.perf_counter()
        for size in groups:
            commit = time.perf_counter()
            first, self._seq = self._seq + 1, self._seq + size
            execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(1 << 40 | seq, *head, crc, *tail) for seq in range(first, first + size)],
            )
            execute("COMMIT")
            if self._slow_s:
                time.sleep(self._slow_s)
            commits_s.append(time.perf_counter() - commit)
        return Run(sum(groups), time.perf_counter() - began, groups, commits_s)

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()


def opened(path: Path) -> sqlite3.Connection:
    """A file with the product's schema and pragmas, and one stream in it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    schema.migrate(connection, 0)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("INSERT INTO streams (id, name) VALUES (1, 'bench')")
    return connection


def filled(path: Path, rows: int) -> None:
    """A file that holds so many records in stream `bench`, on disk and checkpointed."""
    connection = opened(path)
    connection.execute("BEGIN")
    stamp = Clock().stamp()
    streams.insert(
        connection,
        (streams.row(1, seq, RECORD.type, stamp, RECORD.body, 0, 0) for seq in range(1, rows + 1)),
    )
    connection.execute("UPDATE streams SET produced = ?, held = ?", (rows, rows))
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def written_bytes() -> int:
    """Bytes that this process has made the kernel write to disk."""
    rows = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(rows["write_bytes"])


async def append(
    database: Observed,
    producers: int,
    batch: int,
    awaits: int,
    durability: Durability = Durability.GROUP,
) -> Run:
    """So many awaits of each producer, all at once, until all of it is on the disk."""
    settings, records, calls_s = Settings(), [RECORD] * batch, list[float]()
    rule = StreamRule(match="*", durability=durability.value)
    volatile = Volatile(database, settings.volatile_bytes_max, settings.volatile_s, lambda: None)
    intake = Intake(database, Clock(), lambda _: rule, volatile, lambda: None)

    async def produce() -> None:
        for _ in range(awaits):
            began = time.perf_counter()
            await intake.append("bench", records)
            calls_s.append(time.perf_counter() - began)

    database.commits.clear()
    before, began = written_bytes(), time.perf_counter()
    async with volatile:
        await asyncio.gather(*(produce() for _ in range(producers)))
    elapsed_s, written = time.perf_counter() - began, written_bytes() - before
    groups, commits_s = zip(*database.commits, strict=True)
    rows = producers * batch * awaits
    return Run(rows, elapsed_s, list(groups), list(commits_s), calls_s, written)


async def awaits_for(database: Observed, producers: int, batch: int) -> int:
    """How many awaits of each producer make SIDE_S; warms the file up on the way."""
    warm = max(10, WARM_ROWS // producers // batch) if not database.slow_s else 10
    run = await append(database, producers, batch, warm)
    return max(10, round(run.rate * SIDE_S / producers / batch))


async def measured(
    case: Case, folder: Path, pairs: int
) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """One case in files of its own: the pairs, and our side's figures."""
    bare = Bare(folder / f"{case.name}-bare.db", case.slow_s)
    runs: list[tuple[Run, Run]] = []
    async with Observed(folder / f"{case.name}.db", case.slow_s) as database:
        awaits = await awaits_for(database, case.producers, case.batch)
        for _ in range(pairs):
            ours = await append(database, case.producers, case.batch, awaits)
            runs.append((ours, bare.run(ours.groups)))
    bare.close()
    ratio = report.Ratio.of([ours.rate / theirs.rate for ours, theirs in runs], case.target)
    ratios = {case.key: ratio}
    if case.producers == 1:
        medians = [(statistics.median(o.calls_s), statistics.median(t.commits_s)) for o, t in runs]
        ratios["await_p50_vs_bare_commit"] = report.Ratio.of([o / t for o, t in medians], 2.0)
    return ratios, figures(case.name, [ours for ours, _ in runs])


def figures(name: str, runs: list[Run]) -> dict[str, float]:
    """Our side's, over all its runs."""
    commits = statistics.quantiles((s for run in runs for s in run.commits_s), n=100)
    calls = statistics.quantiles((s for run in runs for s in run.calls_s), n=100)
    rows = sum(run.rows for run in runs)
    found = {
        "records_per_s": statistics.median(run.rate for run in runs),
        "records_per_commit": rows / sum(len(run.groups) for run in runs),
        "written_bytes_per_record": sum(run.written_bytes for run in runs) / rows,
        "commit_p50_ms": commits[49] * 1e3,
        "commit_p99_ms": commits[98] * 1e3,
        "await_p50_ms": calls[49] * 1e3,
        "await_p99_ms": calls[98] * 1e3,
    }
    return {f"{name}_{key}": figure for key, figure in found.items()}


async def volatile(folder: Path, pairs: int) -> dict[str, float]:
    """One producer of volatile records."""
    async with Observed(folder / "volatile.db") as database:
        await awaits_for(database, 64, 1)
        runs = [
            await append(database, 1, 1, VOLATILE_ROWS, Durability.VOLATILE) for _ in range(pairs)
        ]
    return figures("append_1_volatile", runs)


async def held(folder: Path, pairs: int, rows: int) -> report.Ratio:
    """64 producers into a store that holds so many rows, against one that was just made."""
    path, ratios = folder / "held.db", list[float]()
    filled(path, rows)
    os.sync()
    async with Observed(path) as full:
        awaits = await awaits_for(full, 64, 1)
        for i in range(pairs):
            async with Observed(folder / f"empty{i}.db") as empty:
                await awaits_for(empty, 64, 1)
                ours = await append(full, 64, 1, awaits)
                ratios.append(ours.rate / (await append(empty, 64, 1, awaits)).rate)
            (folder / f"empty{i}.db").unlink()
    path.unlink()
    return report.Ratio.of(ratios, 0.85)


def save(folder: Path, count: int) -> None:
    """Chunks as files, each safe on disk under its name before the next."""
    directory = os.open(folder, os.O_RDONLY)
    for number in range(count):
        with (folder / "new").open("wb") as file:
            file.write(CHUNK)
            file.flush()
            os.fsync(file.fileno())
        (folder / "new").rename(folder / f"{time.monotonic_ns()}-{number}")
        os.fsync(directory)
    os.close(directory)


async def audio(folder: Path, pairs: int, sources: int) -> tuple[report.Ratio, dict[str, float]]:
    """Chunks of so many recordings at once, each of them one after the other, against files."""
    places = [folder / f"files-{sources}" / str(number) for number in range(sources)]
    for place in places:
        place.mkdir(parents=True)
    threads, loop = ThreadPoolExecutor(sources), asyncio.get_running_loop()
    async with Observed(folder / f"audio-{sources}.db") as database:
        spool = Spool(database, Clock(), lambda: None)
        takes = [await spool.begin(str(number), "bench", "1") for number in range(sources)]

        async def record(take: Take, count: int) -> Take:
            for _ in range(count):
                take = await spool.accept(take, CHUNK)
            return take

        async def accept(count: int) -> None:
            takes[:] = await asyncio.gather(*(record(take, count) for take in takes))

        async def write(count: int) -> None:
            await asyncio.gather(
                *(loop.run_in_executor(threads, save, place, count) for place in places)
            )

        await accept(100)
        count = round(100 * SIDE_S / await seconds(write, 100))
        timed = [(await seconds(accept, count), await seconds(write, count)) for _ in range(pairs)]
    threads.shutdown()
    ours, theirs = (sources * count / statistics.median(side) for side in zip(*timed, strict=True))
    found = {f"audio_{sources}_chunks_per_s": ours, f"audio_{sources}_files_per_s": theirs}
    return report.Ratio.of([theirs / ours for ours, theirs in timed], 2.0), found


async def seconds(work: Callable[[int], Awaitable[None]], count: int) -> float:
    """How long so much of it takes."""
    began = time.perf_counter()
    await work(count)
    return time.perf_counter() - began


async def measure(folder: Path, *, full: bool) -> report.Report:
    """All cases, one after the other; the peers too if `full`."""
    pairs, rows = (PAIRS_FULL, HELD_FULL) if full else (PAIRS, HELD)
    ratios: dict[str, report.Ratio] = {}
    found = {"held_rows": float(rows)}
    for case in CASES:
        more_ratios, more = await measured(case, folder, pairs)
        ratios |= more_ratios
        found |= more
    found |= await volatile(folder, pairs)
    found["append_1_volatile_of_group_bytes"] = (
        found["append_1_volatile_written_bytes_per_record"]
        / found["append_1_written_bytes_per_record"]
    )
    ratios["append_1m_held_vs_empty"] = await held(folder, pairs, rows)
    for sources, key in AUDIO.items():
        ratios[key], more = await audio(folder, pairs, sources)
        found |= more
    if full:
        async with Observed(folder / "peers.db") as database:

            async def ours(awaits: int) -> float:
                return (await append(database, store_peers.PRODUCERS, 1, awaits)).rate

            more_ratios, more = await store_peers.measured(ours, folder, pairs)
        ratios |= more_ratios
        found |= more
    return report.Report.of("store", ratios, found)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir="var") as folder:
        uvloop.run(measure(Path(folder), full=asked.full)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
