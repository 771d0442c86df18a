"""Commands to two thousand simulated devices through a real Mosquitto, and what they answer.

The devices speak the real protocol, all in one process; the controller is `holdfast-fleet control`
on SQLite, with its commits on the disk. All is on 127.0.0.1 and on the same cores, so figures per
second are those of everything together; the CPU seconds say what the controller needs by itself.

burst   one order to all devices at once, until the database has the last word of each
steady  orders to one device after the other, so many a second
one     orders to one device: each after the last word on the one before, and all at once
real    the same to a real agent, with its journal on the disk

cost_2000_vs_200_devices  CPU of the controller per command of a burst; smaller is better, 1 would
                          be that more devices cost nothing
steady_p99_vs_burst_p99   time to the last word, an order among few against one among 2,000; smaller
                          is better
effects_vs_commands       1: each device had one effect of each command

Times to result are from the order's commit to that of its last word, so with the database's share
on both sides. Each device answers `accepted` and `succeeded`, so a command is three messages.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from bench import report
from bench.usage import Usage
from fleet.control import base, book
from fleet.control.orders import Wish, made
from fleet.control.waiting import ended
from fleet.store.database import Database
from tests.fleet.control.rig import ControlProcess
from tests.outside import Device, Mosquitto, running
from tests.sim.commanded import Commanded, Crew

DEVICES, FEW = 2000, 200
STEADY_PER_S = 100.0
STEADY_S = 5.0
ONE = 100  # commands to one device
FULL = 3  # --full: so many times as much
DEADLINE_S = 120.0
POLL_S = 0.02


class Site:
    """A broker, a controller, devices, and the database between."""

    def __init__(self, database: Database, control: ControlProcess, broker_url: str) -> None:
        self.database = database
        self.control = control
        self.broker_url = broker_url
        self._orders = 0

    async def order(self, devices: Sequence[str]) -> str:
        """One more order to these; its id."""
        (id_,) = await self.orders(devices, 1)
        return id_

    async def orders(self, devices: Sequence[str], count: int) -> list[str]:
        """So many more, given at once; their ids."""
        ids = [f"o-{self._orders + place}" for place in range(count)]
        self._orders += count
        async with self.database.begin() as transaction:
            for id_ in ids:
                wish = Wish(name="status", id=id_, expires_s=3600)
                orders = made(wish, devices, time.time())
                await book.add(transaction, orders, time.time_ns() // 1000)
        return ids

    async def done(self, devices: Sequence[str], ids: Sequence[str]) -> list[book.Kept]:
        """All of them have ended."""
        found = await ended(self.database, devices, ids, DEADLINE_S, POLL_S)
        assert all(one.state == "succeeded" for one in found), "not all succeeded"
        return found


@asynccontextmanager
async def site(folder: Path, count: int) -> AsyncIterator[tuple[Site, Crew]]:
    """All of it, with so many devices connected."""
    broker, url = Mosquitto(folder), f"sqlite:///{folder}/{count}.db"
    control = ControlProcess(folder, broker.url, url)
    with running(broker, control):
        async with (
            base.open(url) as database,
            Crew([Commanded(f"device-{i}", broker.url) for i in range(count)]) as crew,
        ):
            yield Site(database, control, broker.url), crew


async def burst(there: Site, devices: Sequence[str], times: int) -> dict[str, float]:
    """To all at once, one after the other."""
    usage = Usage({"control": [there.control.pid]})
    found: list[book.Kept] = []
    spent_s = 0.0
    for _ in range(times):
        some = await there.done(devices, [await there.order(devices)])
        first, last = min(one.made_us for one in some), max(one.ended_us or 0 for one in some)
        spent_s += (last - first) / 1e6
        found += some
    cpu_s = usage.seconds()["control"]
    return {
        "commands_per_s": len(found) / spent_s,
        **latencies(found),
        "control_cpu_ms_per_command": 1000 * cpu_s / len(found),
    }


async def steady(there: Site, devices: Sequence[str], seconds: float) -> dict[str, float]:
    """One device after the other."""
    ids, at = [], time.monotonic()
    for place in range(int(STEADY_PER_S * seconds)):
        at += 1 / STEADY_PER_S
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        ids.append(await there.order([devices[place % len(devices)]]))
    found = await there.done(devices, ids)
    assert len(found) == len(ids)
    return latencies(found)


async def one_device(there: Site, device: str, count: int) -> dict[str, float]:
    """Commands to one device, simulated or real (on `there.broker_url`), that takes `status`."""
    began = time.monotonic()
    alone = []
    for _ in range(count // 10):
        alone += await there.done([device], [await there.order([device])])
    took_s = time.monotonic() - began
    ids = await there.orders([device], count)
    found = await there.done([device], ids)
    first, last = min(one.made_us for one in found), max(one.ended_us or 0 for one in found)
    return {
        "alone_per_s": len(alone) / took_s,
        **{f"alone_{key}": value for key, value in latencies(alone).items()},
        "at_once_per_s": len(found) / ((last - first) / 1e6),
    }


async def real_device(there: Site, folder: Path, count: int) -> dict[str, float]:
    """The same to a real agent, which keeps each command in its journal."""
    link = {"broker_url": there.broker_url, "ack_from": "broker"}
    place = folder / "real"
    place.mkdir()
    device = Device(place, {"link": link})
    await asyncio.to_thread(device.start)
    try:
        return await one_device(there, "device-under-test", count)
    finally:
        await asyncio.to_thread(device.kill)


def latencies(found: Sequence[book.Kept]) -> dict[str, float]:
    """From the order to the last word."""
    times = sorted(((one.ended_us or 0) - (one.given_us or 0)) / 1e3 for one in found)
    return {"p50_ms": times[len(times) // 2], "p99_ms": times[len(times) * 99 // 100]}


async def _measured(folder: Path, times: int) -> report.Report:
    async with site(folder, FEW) as (there, crew):
        names = [one.name for one in crew.devices]
        few = await burst(there, names, 5 * times)
        real = await real_device(there, folder, ONE * times)
    async with site(folder, DEVICES) as (there, crew):
        names = [one.name for one in crew.devices]
        many = await burst(there, names, times)
        paced = await steady(there, names, STEADY_S * times)
        single = await one_device(there, names[0], ONE * times)
        effects = crew.effects
    cost = many["control_cpu_ms_per_command"] / few["control_cpu_ms_per_command"]
    ratios = {
        "cost_2000_vs_200_devices": report.Ratio.once(cost, 1.5),
        "steady_p99_vs_burst_p99": report.Ratio.once(paced["p99_ms"] / many["p99_ms"], 0.5),
        "effects_vs_commands": report.Ratio.once(sum(effects.values()) / len(effects), 1.0),
    }
    figures = {f"burst_{key}": value for key, value in many.items()}
    figures |= {f"few_{key}": value for key, value in few.items()}
    figures |= {f"steady_{key}": value for key, value in paced.items()}
    figures |= {f"one_{key}": value for key, value in single.items()}
    figures |= {f"real_{key}": value for key, value in real.items()}
    return report.Report.of("commands", ratios, figures)


def measure(folder: Path, *, full: bool) -> report.Report:
    """All figures."""
    return uvloop.run(_measured(folder, FULL if full else 1))


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-commands-", dir="var") as folder:
        measure(Path(folder).resolve(), full=asked.full).show(as_json=asked.json)


if __name__ == "__main__":
    main()
