"""Two thousand devices over one Mosquitto into `holdfast-fleet ingest`, and their broker is killed.

The devices are real links and uplinks, in two processes; in place of the store each has a shelf in
memory that obeys the outbox's interface (tests/sim/shelf.py). All is on 127.0.0.1 and on the same
cores, so figures per second are those of everything together; the CPU seconds say what each process
needs by itself. A run is, in this order:

drain   each device has a backlog, and makes live records beside it
steady  200 live records a second, each a message, and heartbeats each 10 s
crash   the broker is killed and started; live records go on, until all is acknowledged

Then the database is compared with what was made: each (device, epoch, stream, seq) is there, and
nothing else; where not, this ends with an error. There are a run with 2,000 devices and one with
200 that make as many live records altogether, both into SQLite; --full makes longer ones, and two
more into PostgreSQL (without fsync), with one ingest and with two.

cost_2000_vs_200_devices     CPU of the ingest per live message while it is steady; smaller is
                             better, 1 would be that more devices and their heartbeats cost nothing
live_lag_vs_drain            median age of live records at their commit while the backlogs drain,
                             over the time that takes; smaller is better, 0.5 would be that they
                             wait among the backlog
repeats_vs_records           records that came to an ingest once more, over all; smaller is better
most_in_one_second_vs_all    the most devices back within one second of the crash; smaller is better
two_ingests_vs_one           (--full) records per second of the drain; greater is better. Where the
                             cores are busy with one already, two cannot be faster
two_ingests_cpu_vs_one       (--full) CPU of ingests and PostgreSQL per record; smaller is better

The figures of the run with 2,000 devices into SQLite have no prefix, those of 200 have `few_`,
those of PostgreSQL `one_` and `two_`. CPU is in seconds per 1,000 records (`_per_1000`), of the
drain, and in parts of a core (`_cores`) while it is steady. `records_per_batch` is of the drain: a
device's first batches are small, since it does not know its line yet. A live record's lag ends
where its transaction begins. Bytes per device are the growth of resident memory while they connect.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from bench import report
from bench.crowd_devices import Devices
from bench.reconnect import most_in_one_second
from bench.usage import Usage, counters, rss_bytes
from fleet.store import database
from tests.fleet.cluster import Cluster
from tests.fleet.process import IngestProcess
from tests.outside import Mosquitto
from tests.sim.shelf import EPOCH, STREAM

DEVICES, FEW = 2000, 200
BACKLOG = 80  # records of a device
LIVE_PER_S = 200.0  # of all devices together
STEADY_S = 10.0  # all heartbeats once
FULL = 3  # --full: so many times as much
DEADLINE_S = 300.0


class Setup(Struct, frozen=True):
    """What a run is made of."""

    devices: int
    database_url: str
    ingests: int = 1
    times: int = 1


class Crowd:
    """One run, from the start of its broker to the look into its database."""

    def __init__(self, folder: Path, setup: Setup, cluster: Cluster | None = None) -> None:
        self._setup = setup
        self._broker = Mosquitto(folder)
        self._ingests = [
            IngestProcess(folder, self._broker.url, setup.database_url, "--ack-s", "0.2")
            for _ in range(setup.ingests)
        ]
        self._cluster = cluster

    def measure(self) -> dict[str, float]:
        """All figures. Raises AssertionError where the database is not what was made."""
        with self._running():
            before = self._memory()
            with Devices(self._broker.url, self._setup.devices) as devices:
                found = self._memory_per_device(before)
                found |= self._drain(devices)
                found |= self._steady(devices)
                found |= self._crash(devices)
                made = devices.names()
            count = counters(self._ports)
            found["repeats_share"] = count["records.known"] / count["records.new"]
            found |= asyncio.run(_lags(self._setup, self._moments))
        asyncio.run(_check(self._setup.database_url, made))
        return found

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._broker.start()
        try:
            for ingest in self._ingests:
                ingest.start()
            yield
        finally:
            for ingest in self._ingests:
                ingest.kill()
            self._broker.kill()

    @property
    def _ports(self) -> list[int]:
        return [ingest.metrics_port for ingest in self._ingests]

    def _usage(self, devices: Devices) -> Usage:
        pids = {
            "ingest": [ingest.pid for ingest in self._ingests],
            "broker": [self._broker.pid],
            "devices": devices.pids,
        }
        return Usage(pids | ({"postgres": [self._cluster.pid]} if self._cluster else {}))

    def _memory(self) -> dict[str, int]:
        pids = {"broker": [self._broker.pid], "ingest": [ingest.pid for ingest in self._ingests]}
        return {name: rss_bytes(some) for name, some in pids.items()}

    def _memory_per_device(self, before: dict[str, int]) -> dict[str, float]:
        return {
            f"{name}_bytes_per_device": (now - before[name]) / self._setup.devices
            for name, now in self._memory().items()
        }

    def _drain(self, devices: Devices) -> dict[str, float]:
        """Live records and a backlog, until all of that is acknowledged."""
        backlog = BACKLOG * self._setup.times
        usage, began, began_us = self._usage(devices), time.monotonic(), _now_us()
        before = counters(self._ports).get("messages.up", 0.0)
        devices.fill(backlog)
        devices.live(LIVE_PER_S / self._setup.devices)
        backlogs = backlog * self._setup.devices
        done = devices.until(lambda state: state.delivered >= backlogs, DEADLINE_S)
        took_s = time.monotonic() - began
        self._moments = {"draining": (began_us, _now_us())}
        found = {"drain_s": took_s, "records_per_s": done.delivered / took_s}
        batches = counters(self._ports)["messages.up"] - before
        found["records_per_batch"] = done.delivered / batches
        for name, spent_s in usage.seconds().items():
            found[f"{name}_cpu_s_per_1000"] = 1000 * spent_s / done.delivered
        for name, size in self._memory().items():
            found[f"{name}_drained_mib"] = size / (1 << 20)
        return found

    def _steady(self, devices: Devices) -> dict[str, float]:
        """Live records alone."""
        usage, began_us, before = self._usage(devices), _now_us(), counters(self._ports)
        began = time.monotonic()
        time.sleep(STEADY_S * self._setup.times)
        after, took_s = counters(self._ports), time.monotonic() - began
        self._moments["steady"] = (began_us, _now_us())
        usage_s = usage.seconds()
        found = {f"{name}_cores": spent_s / took_s for name, spent_s in usage_s.items()}
        for name, key in (("up", "messages.up"), ("beat", "messages.heartbeat"), ("ack", "acks")):
            found[f"{name}_messages_per_s"] = (after[key] - before.get(key, 0.0)) / took_s
        batches = after["messages.up"] - before["messages.up"]
        found["ingest_cpu_s_per_1000_live"] = 1000 * usage_s["ingest"] / batches
        return found

    def _crash(self, devices: Devices) -> dict[str, float]:
        """The broker goes and comes, live records go on; then all is acknowledged."""
        before = time.monotonic()
        self._broker.kill()
        self._broker.start()
        up_at = time.monotonic()
        all_back = devices.until(lambda state: min(state.back) > before, DEADLINE_S)
        devices.stop()
        done = devices.until(lambda state: not state.held, DEADLINE_S)
        assert not done.dead, f"{done.dead} records were given up"
        return {
            "most_in_one_second_share": most_in_one_second(all_back.back) / len(all_back.back),
            "last_back_s": max(all_back.back) - up_at,
            "all_acknowledged_s": time.monotonic() - up_at,
        }


def _now_us() -> int:
    return int(time.time() * 1e6)


async def _lags(setup: Setup, moments: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Of the live records that were made in each stretch of time."""
    asked = "SELECT time_us, stored_us - time_us FROM records WHERE seq > $1"
    there = database.open(setup.database_url, reads_only=True)
    async with there, there.begin() as transaction:
        rows = await transaction.fetch(asked, BACKLOG * setup.times)
    found: dict[str, float] = {}
    for name, (first_us, last_us) in moments.items():
        lags_s = sorted(lag / 1e6 for made, lag in rows if first_us <= made <= last_us)
        found[f"live_lag_{name}_s"] = statistics.median(lags_s)
        found[f"live_lag_{name}_p99_s"] = lags_s[len(lags_s) * 99 // 100]
    return found


async def _check(url: str, made: dict[str, int]) -> None:
    """The database has what was made, once, and nothing else."""
    asked = """
    SELECT d.name, s.epoch, s.name, r.seq FROM records r
    JOIN streams s ON s.id = r.stream JOIN devices d ON d.id = s.device
    """
    base = database.open(url, reads_only=True)
    async with base, base.begin() as transaction:
        rows = [tuple(row) for row in await transaction.fetch(asked)]
        refused = await transaction.fetch("SELECT cause FROM refused LIMIT 1")
    wanted = {
        (device, EPOCH, STREAM, seq)
        for device, count in made.items()
        for seq in range(1, count + 1)
    }
    there = set(rows)
    assert len(there) == len(rows), f"{len(rows) - len(there)} records are stored twice"
    assert there == wanted, (
        f"{len(wanted - there)} are missing, {len(there - wanted)} were not made"
    )
    assert not refused, refused[0][0]


def measure(folder: Path, *, full: bool) -> report.Report:
    """All runs."""
    times = FULL if full else 1
    many = _sqlite(folder, DEVICES, times)
    few = _sqlite(folder, FEW, times)
    cost = many["ingest_cpu_s_per_1000_live"] / few["ingest_cpu_s_per_1000_live"]
    ratios = {
        "cost_2000_vs_200_devices": report.Ratio.once(cost, 1.5),
        "live_lag_vs_drain": report.Ratio.once(many["live_lag_draining_s"] / many["drain_s"], 0.25),
        "repeats_vs_records": report.Ratio.once(many.pop("repeats_share"), 0.1),
        "most_in_one_second_vs_all": report.Ratio.once(many.pop("most_in_one_second_share"), 0.35),
    }
    figures = many | {f"few_{key}": value for key, value in few.items()}
    if full:
        one, two = _postgres(folder, times)
        cpu = _cost(two, "ingest", "postgres") / _cost(one, "ingest", "postgres")
        ratios["two_ingests_vs_one"] = report.Ratio.once(
            two["records_per_s"] / one["records_per_s"]
        )
        ratios["two_ingests_cpu_vs_one"] = report.Ratio.once(cpu, 1.3)
        figures |= {f"one_{key}": value for key, value in one.items()}
        figures |= {f"two_{key}": value for key, value in two.items()}
    return report.Report.of("crowd", ratios, figures)


def _sqlite(folder: Path, devices: int, times: int) -> dict[str, float]:
    setup = Setup(devices, f"sqlite:///{folder}/{devices}.db", times=times)
    return Crowd(folder, setup).measure()


def _postgres(folder: Path, times: int) -> tuple[dict[str, float], dict[str, float]]:
    """With one ingest, and with two."""
    cluster = Cluster()
    try:
        cluster.start()
        one, two = (
            Crowd(folder, Setup(DEVICES, cluster.new(), ingests, times), cluster).measure()
            for ingests in (1, 2)
        )
        return one, two
    finally:
        cluster.remove()


def _cost(found: dict[str, float], *names: str) -> float:
    return sum(found[f"{name}_cpu_s_per_1000"] for name in names)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-crowd-", dir="var") as folder:
        measure(Path(folder).resolve(), full=asked.full).show(as_json=asked.json)


if __name__ == "__main__":
    main()
