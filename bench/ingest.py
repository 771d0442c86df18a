"""Records per second that one ingest's `Cloud.store` takes in and commits, without a broker.

Batches of 500 records with bodies of 512 bytes (JSON, as of a sensor), encoded beforehand as a
device does: taken apart, checked and stored here. `store_sqlite_*` lies below ./var, so that fsync
counts; `store_postgres_*` is measured when `--postgres URL` names an empty database.

*_records_per_s    BATCHES batches in a transaction, as an ingest gathers them when there is much
*_single_records_per_s  one batch in a transaction
*_repeat_records_per_s  the same batches once more: everything is there already
take_apart_records_per_s  decoding and checks alone
*_small_batches_per_s  batches of 10 records, each of another device, 200 in a transaction
*_heartbeats_per_s  heartbeats with the ledger of two streams that grew, 1,000 in a transaction
*_acks_per_s       ack documents, of 200 devices asked for at once
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

import msgspec

from agent.protocol import batch
from agent.protocol.presence import Heartbeat
from agent.records import Balance, Record, Stamp
from bench import report
from fleet.store import database
from fleet.store.arrivals import take_apart
from fleet.store.cloud import Arrival, Cloud

BATCHES, RECORDS, BODY_BYTES = 20, 500, 512
DEVICES = 200
PREFIX = "holdfast/v1"
WALL_US = 1_700_000_000_000_000


def main() -> None:
    """Print the report."""
    parser = report.options(__doc__)
    parser.add_argument("--postgres", metavar="URL", help="an empty database to measure, too")
    asked = parser.parse_args()
    rounds = 40 if asked.full else 8
    figures = {"take_apart_records_per_s": _taken_apart()}
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="var") as folder:
        where = {"sqlite": f"sqlite:///{folder}/fleet.db"}
        if asked.postgres:
            where["postgres"] = asked.postgres
        for name, url in where.items():
            found = asyncio.run(_stored(url, rounds))
            figures |= {f"store_{name}_{key}": value for key, value in found.items()}
    report.Report.of("ingest", {}, figures).show(as_json=asked.json)


async def _stored(url: str, rounds: int) -> dict[str, float]:
    async with Cloud(database.open(url)) as cloud:
        await cloud.store(_arrivals("warm", 1))
        much = [_arrivals(f"press-{number}", BATCHES) for number in range(rounds)]
        figures = {"records_per_s": await _rate(cloud, much)}
        figures["repeat_records_per_s"] = await _rate(cloud, much)
        single = [[one] for number in range(rounds) for one in _arrivals(f"lathe-{number}", 5)]
        figures["single_records_per_s"] = await _rate(cloud, single)
        figures["small_batches_per_s"] = await _small(cloud, rounds)
        figures["heartbeats_per_s"] = await _heartbeats(cloud, rounds)
        devices = [f"small-{number}" for number in range(DEVICES)]
        began = time.perf_counter()
        for _ in range(rounds):
            await cloud.acks(devices)
        figures["acks_per_s"] = rounds * len(devices) / (time.perf_counter() - began)
        return figures


async def _small(cloud: Cloud, rounds: int) -> float:
    """Batches per second of devices that each send little."""
    groups = [
        [_batch(f"small-{number}", 1 + 10 * at, 10) for number in range(DEVICES)]
        for at in range(rounds + 1)
    ]
    await cloud.store(groups[0])  # the devices are known from then on
    return await _rate(cloud, groups[1:]) / RECORDS


async def _heartbeats(cloud: Cloud, rounds: int) -> float:
    took_s = 0.0
    for at in range(rounds + 1):
        grown = Balance(at, at, 0, {})
        beats = {
            device: Heartbeat(
                device=device,
                epoch="e1",
                uptime_s=at,
                status="healthy",
                conditions=[],
                ledger={"e1": {"sensor": grown, "a.segments": grown}},
            )
            for device in (f"small-{number}" for number in range(5 * DEVICES))
        }
        began = time.perf_counter()
        await cloud.note([], beats)
        took_s += (time.perf_counter() - began) if at else 0.0
    return rounds * 5 * DEVICES / took_s


async def _rate(cloud: Cloud, groups: list[list[Arrival]]) -> float:
    began = time.perf_counter()
    for group in groups:
        await cloud.store(group)
    return RECORDS * sum(map(len, groups)) / (time.perf_counter() - began)


def _taken_apart() -> float:
    arrivals = _arrivals("press-1", BATCHES)
    began = time.perf_counter()
    for arrival in arrivals:
        take_apart(PREFIX, arrival)
    return RECORDS * BATCHES / (time.perf_counter() - began)


def _arrivals(device: str, batches: int) -> list[Arrival]:
    return [_batch(device, number * RECORDS + 1, RECORDS) for number in range(batches)]


def _batch(device: str, first: int, count: int) -> Arrival:
    chance = random.Random(f"{device} {first}")
    records = [_record(chance, seq) for seq in range(first, first + count)]
    payload = batch.encode(device, "e1", "sensor", records, [])
    return Arrival(f"{PREFIX}/{device}/up/sensor", payload)


def _record(chance: random.Random, seq: int) -> Record:
    reading = {f"channel_{n}": round(chance.gauss(20, 3), 3) for n in range(20)}
    body = msgspec.json.encode({"line": "press", "unit": "mm/s", **reading})
    body = body[:-1] + b',"note":"' + b"-" * (BODY_BYTES - len(body) - 10) + b'"}'
    stamp = Stamp("5f0c8d0e-4a52-4bd1-9f6d-0c58a0f5b9d1", seq * 1_000_000, WALL_US + seq * 1000)
    return Record("sensor", seq, "sensor.v1", stamp, body, timebound=True)


if __name__ == "__main__":
    main()
