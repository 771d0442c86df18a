"""A backlog goes to the cloud: from the store through a real broker into the ingest's database.

The agent (`holdfast run`, a process of its own) holds a backlog of records of 512 bytes: telemetry
of a machine, as JSON. It is connected to Mosquitto, and paused. From the operator's `sync resume`
on it sends them in batches; `holdfast-fleet ingest` commits them and acknowledges; the agent
purges. A drain is over when the agent's ledger says that nothing is held and all was delivered, and
the database is asked whether it holds just these.

drain_vs_paho_single  records per second, against plain paho with QoS 1 and 20 in flight, one
                      record a message, without a store, through the same broker to nobody
drain_vs_store_read   against one SQLite connection that reads and deletes the same rows, in steps
                      of the same sizes; no ledger
wire_vs_json          bytes that the broker received (its own count: headers, blobs' pieces, acks
                      of QoS 1, heartbeats) per record, against the same CloudEvents as JSON, one a
                      message; smaller is better. wire_vs_bodies: against the bare bodies
rss_vs_backlog        the agent's most resident memory with the whole backlog over that with a tenth
                      of it; smaller is better. Measured once.
drain_vs_mosquitto_pub  --full: against `mosquitto_pub -l -q 1`, one record a line

Needs mosquitto. ingest_* are records per second that one ingest takes in, alone, from a broker that
gets them as fast as it passes them on: into SQLite, and into PostgreSQL where that is installed
(else 0).
"""

import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
import psutil
import uvloop
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion

from agent.cli.client import Client
from agent.clock import Clock
from agent.config import Store as Settings
from agent.protocol import ack, batch
from agent.records import RecordType
from agent.store.store import Store
from agent.store.streams import New
from bench import report
from bench.sync_peers import Counter, bare, piped, single
from tests.fleet.cluster import FOUND, Cluster
from tests.outside import Device, Mosquitto, until

RECORDS, RECORDS_FULL = 200_000, 1_000_000
SINGLE = 20_000  # messages of the side with one record a message
PAIRS, PAIRS_FULL = 2, 5
BATCH = 500  # records a step of the bare loop: `link.batch_records_max`
POLL_S = 0.1  # each question costs the agent some milliseconds
DRAIN_S_MAX = 600.0
BODY_BYTES = 512
PART_DIGITS_MAX = 16  # of a part's serial number, at least half of them
BODIES = 10_000  # different ones, again and again: many more than zstd sees at once
STEP = 1000  # records an append while filling
MIB = 1 << 20
FLEET = Path(sys.executable).with_name("holdfast-fleet")


STATES = ("cycle complete", "waiting for material", "tool change due", "lubrication running")
WHERE = (
    "main ram",
    "feeder",
    "die 1",
    "die 2",
    "ejector",
    "hydraulics",
    "light curtain",
    "outfeed",
)


def body(draw: random.Random, number: int) -> bytes:
    """What a press tells each second: JSON of BODY_BYTES, filled with what it measures."""
    told: dict[str, object] = {
        "machine": "press-7",
        "cycle": number,
        "state": draw.choices(("running", "idle", "setup"), (90, 8, 2))[0],
        "force_kn": [round(draw.gauss(410, 3), 2) for _ in range(12)],
        "oil_c": round(draw.gauss(61, 0.4), 2),
        "motor_c": round(draw.gauss(74, 0.8), 2),
        "vibration_mm_s": [round(abs(draw.gauss(1.8, 0.3)), 3) for _ in range(12)],
        "current_a": [round(draw.gauss(88, 1.5), 2) for _ in range(9)],
        "text": f"{draw.choice(WHERE)}: {draw.choice(STATES)}",
        "operator": f"op-{draw.randrange(40):03d}",
        "order": f"WO-2026-{draw.randrange(10**6):06d}",
        "part": "",
    }
    pressure_bar: list[float] = []
    told["pressure_bar"] = pressure_bar
    while (room := BODY_BYTES - len(_json(told))) > PART_DIGITS_MAX:
        pressure_bar.append(round(draw.gauss(231, 4), 2))
    told["part"] = f"{draw.getrandbits(4 * room):0{room}x}"
    return _json(told)


def _json(told: dict[str, object]) -> bytes:
    return json.dumps(told, separators=(",", ":")).encode()


def filled(folder: Path, count: int) -> Path:
    """A closed store in a folder of its own that holds so many records in stream `bench`."""

    async def fill() -> None:
        draw = random.Random(7)
        bodies = [body(draw, number) for number in range(BODIES)]
        settings = Settings(path=str(path), bytes_max=1 << 40)
        async with Store(settings, Clock()) as store:
            for first in range(0, count, STEP):
                numbers = range(first, min(first + STEP, count))
                new = [New(RecordType.SEGMENT, bodies[n % BODIES]) for n in numbers]
                await store.intake.append("bench", new)

    path = folder / f"var-{count}" / "holdfast.db"
    path.parent.mkdir()
    uvloop.run(fill())
    return path.parent


class Memory(threading.Thread):
    """The most resident memory of a process, until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()

    def run(self) -> None:
        """Look, until it is stopped."""
        while not self._over.wait(POLL_S):
            self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


@contextmanager
def ingest(broker: Mosquitto, folder: Path, database: str = "") -> Iterator[None]:
    """The cloud side, from when it has subscribed; without `database`, a file in `folder`."""
    command = [str(FLEET), "ingest", "--broker", broker.url]
    command += ["--database", database or f"sqlite:///{folder}/cloud.db"]
    said = folder / "ingest.log"
    with said.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            until(lambda: "connected to" in said.read_text(), "the ingest is connected")
            yield
        finally:
            process.terminate()
            process.wait(30)


class Drain(Struct, frozen=True):
    """Records per second, the broker's bytes a record, and the agent's most memory."""

    rate: float
    wire_bytes: float
    rss_bytes: int


def drain(held: Path, count: int) -> Drain:
    """Let an agent send all of a copy of a store, and see that the database has it."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        broker = Mosquitto(folder, extra="sys_interval 1\n")
        link = {"broker_url": broker.url, "ack_from": "ingest", "heartbeat_s": 60}
        link |= {"backoff_s_min": 0.05, "backoff_s_max": 0.1}
        device = Device(folder, {"link": link})
        shutil.copytree(held, device.store.parent)
        try:
            device.start()
            api = Client(device.socket)
            api.post("/api/v1/sync/pause")
            until(lambda: device.status()["domains"]["audio"]["ready"], "the agent is ready")
            broker.start()
            with ingest(broker, folder):
                until(lambda: device.status()["link"]["connected"], "the agent is connected")
                counter, memory = Counter(broker.port), Memory(device.pid)
                memory.start()
                api.post("/api/v1/sync/resume")
                api.post("/api/v1/sync/now")
                elapsed_s = emptied(device, count)
                memory.stop()
                wire_bytes = counter.read() / count
                counter.stop()
            device.stop()
        finally:
            device.kill()
            broker.kill()
        stored(folder / "cloud.db", count)
        return Drain(count / elapsed_s, wire_bytes, memory.most_bytes)


def emptied(device: Device, count: int) -> float:
    """Seconds until all of them are delivered."""
    began = time.perf_counter()
    while (elapsed_s := time.perf_counter() - began) < DRAIN_S_MAX:
        ledger = device.ledger("bench")
        if ledger["delivered"] == count and ledger["held"] == 0:
            return elapsed_s
        time.sleep(POLL_S)
    raise TimeoutError(f"{count} records were not delivered within {DRAIN_S_MAX:.0f} s")


def stored(database: Path, count: int) -> None:
    """The database holds every seq once, or this is no measurement."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT seq) FROM records").fetchone()
    if found != (count, count):
        raise AssertionError(f"{found} records and seqs in the database, expected {count}")


def batches(held: Path, count: int) -> list[bytes]:
    """The payloads that carry the first `count` records."""

    async def lease(path: Path) -> list[bytes]:
        payloads: list[bytes] = []
        async with Store(Settings(path=str(path), bytes_max=1 << 40), Clock()) as store:
            for _ in range(-(-count // BATCH)):
                leased = await store.outbox.lease(BATCH, 1 << 20)
                assert leased is not None
                payloads.append(batch.encode("bench", *leased.name, leased.records, leased.drops))
        return payloads

    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        shutil.copytree(held, Path(name) / "var")
        return uvloop.run(lease(Path(name) / "var" / "holdfast.db"))


def taken_in(payloads: list[bytes], database: str = "") -> float:
    """Records per second of one ingest, from the second message until it acknowledges the last."""
    marks = [batch.decode(payload)[0].last for payload in (payloads[0], payloads[-1])]
    reached = [threading.Event(), threading.Event()]

    def on_message(_c: object, _u: object, message: mqtt.MQTTMessage) -> None:
        word = ack.decode(bytes(message.payload))
        mark = max(of.mark for streams in word.epochs.values() for of in streams.values())
        for at, event in zip(marks, reached, strict=True):
            if mark >= at:
                event.set()

    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        broker = Mosquitto(Path(name))
        broker.start()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_message = on_message
        client.on_connect = lambda c, *_: c.subscribe("holdfast/v1/bench/ack", 1)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        with ingest(broker, Path(name), database):
            while not reached[0].wait(POLL_S):  # it may not have subscribed yet
                client.publish("holdfast/v1/bench/up/bench", payloads[0], 1)
            began = time.perf_counter()
            for payload in payloads[1:]:
                client.publish("holdfast/v1/bench/up/bench", payload, 1)
            assert reached[1].wait(DRAIN_S_MAX)
            elapsed_s = time.perf_counter() - began
        client.disconnect()
        client.loop_stop()
        broker.kill()
        return (marks[1] - marks[0]) / elapsed_s


def into_postgres(payloads: list[bytes]) -> float:
    """As `taken_in`, into a PostgreSQL of its own that syncs each commit; 0: there is none."""
    if not FOUND:
        return 0.0
    cluster = Cluster()
    try:
        cluster.start(fsync=True)
        return taken_in(payloads, cluster.new())
    finally:
        cluster.remove()


def main() -> None:
    """Measure, print."""
    asked = report.options(__doc__).parse_args()
    count = RECORDS_FULL if asked.full else RECORDS
    drains, singles, bares, pipes = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        held, tenth = (filled(Path(name), n) for n in (count, count // 10))
        payloads = batches(held, count // 2)
        events = [e for one in payloads[: SINGLE // BATCH] for e in batch.decode(one)[1]]
        bodies = [bytes(event.data) for event in events]
        for _ in range(PAIRS_FULL if asked.full else PAIRS):
            drains.append(drain(held, count))
            singles.append(single(bodies))
            bares.append(bare(held, count, BATCH))
            if asked.full:
                pipes.append(piped(bodies))
        plain = single([msgspec.json.encode(event) for event in events])
        small = drain(tenth, count // 10)
        ratios, found = results(drains, singles, bares, plain, small)
        if pipes:
            pairs = [d.rate / rate for d, rate in zip(drains, pipes, strict=True)]
            ratios["drain_vs_mosquitto_pub"] = report.Ratio.of(pairs)
        found["ingest_sqlite_records_per_s"] = taken_in(payloads)
        found["ingest_postgres_records_per_s"] = into_postgres(payloads)
    report.Report.of("sync", ratios, found).show(as_json=asked.json)


def results(
    drains: list[Drain],
    singles: list[tuple[float, float]],
    bares: list[float],
    plain: tuple[float, float],
    small: Drain,
) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """Ratios and figures."""
    of, once = report.Ratio.of, report.Ratio.once
    most_bytes = max(d.rss_bytes for d in drains)
    ratios = {
        "drain_vs_paho_single": of(
            [d.rate / s[0] for d, s in zip(drains, singles, strict=True)], 2
        ),
        "drain_vs_store_read": of([d.rate / b for d, b in zip(drains, bares, strict=True)], 0.4),
        "wire_vs_json": of([d.wire_bytes / plain[1] for d in drains], 0.25),
        "wire_vs_bodies": of([d.wire_bytes / s[1] for d, s in zip(drains, singles, strict=True)]),
        "rss_vs_backlog": once(most_bytes / small.rss_bytes, 1.1),
    }
    figures = {
        "drain_records_per_s": statistics.median(d.rate for d in drains),
        "paho_single_records_per_s": statistics.median(s[0] for s in singles),
        "store_read_records_per_s": statistics.median(bares),
        "wire_bytes_per_record": statistics.median(d.wire_bytes for d in drains),
        "rss_mib": most_bytes / MIB,
    }
    return ratios, figures


if __name__ == "__main__":
    main()
