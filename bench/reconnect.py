"""How two thousand devices come back after their broker was killed and started again.

2,000 real links (without a store, nothing to send), in two processes, hold connections to one
Mosquitto on 127.0.0.1. It is killed and started again at once; the links wait as they do by
default. --full does that five times, each time after the connections have become old ones.

most_in_one_second_vs_all  the most devices that came back within any one second, over all of them;
                           smaller is better (1 would be a storm)
connects_per_device        tries over devices, from the kill until each is back; 1 is the least

first_, median_ and last_back_s count from the moment the broker listened again, as
links see it; tries_in_one_second_share is most_in_one_second_vs_all for tries, as they were drawn.
"""

import asyncio
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import uvloop

from agent.clock import Clock
from agent.sync.link import STABLE_S
from bench import report
from tests.outside import Mosquitto
from tests.sim.crowd import Device, crowd_of

DEVICES = 2000
PROCESSES = 2
ROUNDS_FULL = 5
HEARTBEAT_S = 60.0  # not 5: two cores that carry 2,000 devices have enough to do
Times = tuple[list[float], list[float]]  # monotonic: when each device was back, and all tries


def crowd(url: str, first: int, count: int, pipe: Pipe) -> None:
    """A process: connect so many, and tell of each round how they came back."""
    logging.disable()  # each device would tell that its broker is gone
    uvloop.run(_crowd(url, first, count, pipe))


async def _crowd(url: str, first: int, count: int, pipe: Pipe) -> None:
    loop = asyncio.get_running_loop()
    async with crowd_of(Device, url, count, first, heartbeat_s=HEARTBEAT_S) as devices:
        pipe.send("connected")
        while await loop.run_in_executor(None, pipe.recv):
            rounds = len(devices.devices[0].served)
            drawn = [len(device.waits.drawn) for device in devices.devices]
            pipe.send("ready")
            await devices.served(rounds + 1)
            back = [device.served[rounds] for device in devices.devices]
            tries = [
                at + wait_s
                for device, seen in zip(devices.devices, drawn, strict=True)
                for at, wait_s in device.waits.drawn[seen:]
            ]
            pipe.send((back, tries))


class Processes:
    """The crowds, and how to talk to all of them."""

    def __init__(self, url: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        share = DEVICES // PROCESSES
        self._pipes: list[Pipe] = []
        self._processes = []
        for i in range(PROCESSES):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=crowd, args=(url, i * share, share, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Processes":
        self._hear("connected")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def begin(self) -> None:
        """A round begins: what comes from now on counts."""
        for pipe in self._pipes:
            pipe.send(True)
        self._hear("ready")

    def back(self) -> Times:
        """Of all devices, once each is back."""
        each: list[Times] = [pipe.recv() for pipe in self._pipes]
        return [at for back, _ in each for at in back], [at for _, tries in each for at in tries]

    def _hear(self, word: str) -> None:
        for pipe in self._pipes:
            assert pipe.recv() == word


def most_in_one_second(moments: Sequence[float]) -> int:
    """The most of them within any one second."""
    moments, first, most = sorted(moments), 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def one_round(broker: Mosquitto, processes: Processes) -> dict[str, float]:
    """Kill the broker, start it again, wait for all."""
    processes.begin()
    broker.kill()
    broker.start()
    up_at = Clock().monotonic()
    back, tries = processes.back()
    return {
        "most_in_one_second_vs_all": most_in_one_second(back) / len(back),
        "connects_per_device": len(tries) / len(back),
        "first_back_s": max(0.0, min(back) - up_at),
        "median_back_s": statistics.median(back) - up_at,
        "last_back_s": max(back) - up_at,
        "tries_in_one_second_share": most_in_one_second(tries) / len(tries),
    }


def measure(folder: Path, *, full: bool) -> report.Report:
    """One round, or several with pauses between them."""
    broker, rounds = Mosquitto(folder), []
    broker.start()
    try:
        began = time.perf_counter()
        with Processes(broker.url) as processes:
            connected_s = time.perf_counter() - began
            for _ in range(ROUNDS_FULL if full else 1):
                if full:
                    time.sleep(STABLE_S + 1)
                rounds.append(one_round(broker, processes))
    finally:
        broker.kill()
    targets = {"most_in_one_second_vs_all": 0.35, "connects_per_device": 1.5}
    ratios = {key: ratio([one[key] for one in rounds], of) for key, of in targets.items()}
    figures = {
        key: statistics.median(one[key] for one in rounds) for key in rounds[0] if key not in ratios
    }
    figures |= {"devices": float(DEVICES), "first_connections_s": connected_s}
    return report.Report.of("reconnect", ratios, figures)


def ratio(found: list[float], target: float) -> report.Ratio:
    """Of one round, or of several."""
    if len(found) == 1:
        return report.Ratio.once(found[0], target)
    return report.Ratio.of(found, target)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-reconnect-") as folder:
        measure(Path(folder), full=asked.full).show(as_json=asked.json)


if __name__ == "__main__":
    main()
