"""Live streams through the audio domain: how many at once in time, and what a few of them cost.

Each stream gives a hop of sound (256 samples, 16 ms) each 16 ms, at its own phase: the phases are
spread evenly. All are read each 4 ms, as a sound card or a network hands sound over, and what is
complete then goes to the domain; hops that come while their stream waits for an answer go together
in its next call. A hop's latency runs from the moment its last sample is there to the moment its
result is back, so the waiting to be read is in it. The domain is the real one: Speech, Domain,
worker process, uvloop.

streams_realtime  the most streams of which 99 % of the hops are back within 20 ms, and all within
                  100 ms; larger is better. More and more are tried, each number twice at most,
                  until one fails both times
cpu_20_streams    CPU time of 20 streams, in parts of one core: of all processes together, less what
                  the reading alone takes in the same run; smaller is better

The figures of a number of streams: `_agent_cores` is this process, which also reads the streams,
`_child_cores` the worker. `reading_20_cores` is what the reading alone takes, without a domain.
"""

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import uvloop
from msgspec import Struct

from agent.inference.catalog import Catalog
from agent.inference.speech import FRESH, Heard
from agent.records import RATE_HZ
from bench import report
from bench.hops import Case, Sound, domain
from bench.usage import Usage

HOP_SAMPLES = 256
HOP_S = HOP_SAMPLES / RATE_HZ
READ_S = 0.004
P99_S_MAX, LATEST_S_MAX = 0.020, 0.100
FEW, MANY = 20, (100, 200, 300, 400, 500, 600)
REALTIME, CORES = 200, 0.15  # targets
WARM_S, RUN_S, RUN_FULL_S = 1.0, 3.0, 30.0
ROUNDS, ROUNDS_FULL = 3, 10  # with a few streams


class Ear(Protocol):
    """What hears the streams: Speech."""

    async def hear(self, pcm: bytes, memory: bytes) -> Heard:
        """The next sound of a stream, with the memory its last answer came with."""


class Deaf:
    """Answers at once: what the streams take without a domain."""

    def __init__(self) -> None:
        self._heard = Heard(np.zeros(0, np.int16), np.zeros(0, np.float32), FRESH)

    async def hear(self, pcm: bytes, memory: bytes) -> Heard:
        """Nothing."""
        return self._heard


class Stream:
    """One live source, and what the domain remembers of it."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._given: list[tuple[float, bytes]] = []
        self._some = asyncio.Event()  # or it has ended
        self._ended = False
        self.latencies_s: list[float] = []

    def give(self, complete_s: float, pcm: bytes) -> None:
        """The next hop; its last sample was there at `complete_s`."""
        self._given.append((complete_s, pcm))
        self._some.set()

    def end(self) -> None:
        """There is no more."""
        self._ended = True
        self._some.set()

    async def run(self) -> None:
        """Have all heard that is given, until the end."""
        memory = FRESH
        while await self._some.wait() and self._given:
            if not self._ended:
                self._some.clear()
            hops, self._given = self._given, []
            memory = (await self._ear.hear(b"".join(pcm for _, pcm in hops), memory)).memory
            now_s = time.perf_counter()
            self.latencies_s += [now_s - complete_s for complete_s, _ in hops]


class Run(Struct, frozen=True):
    """So many streams for a while: each hop's latency, and parts of a core."""

    latencies_s: list[float]
    all_cores: float
    child_cores: float = 0.0

    @property
    def p99_s(self) -> float:
        """What 99 % of the hops are not later than."""
        return statistics.quantiles(self.latencies_s, n=100)[98]

    @property
    def in_time(self) -> bool:
        """Whether this counts as real time."""
        return self.p99_s <= P99_S_MAX and max(self.latencies_s) <= LATEST_S_MAX

    def figures(self, streams: int) -> dict[str, float]:
        """For the report."""
        found = {
            "p50_ms": statistics.median(self.latencies_s) * 1e3,
            "p99_ms": self.p99_s * 1e3,
            "latest_ms": max(self.latencies_s) * 1e3,
            "agent_cores": self.all_cores - self.child_cores,
            "child_cores": self.child_cores,
        }
        return {f"streams{streams}_{key}": figure for key, figure in found.items()}


async def read(streams: list[Stream], sound: Sound, run_s: float) -> None:
    """Give their hops to all streams in turn, when they are complete, for so long."""
    began_s = time.perf_counter()
    given = 0
    while (now_s := time.perf_counter() - began_s) < run_s:
        while (complete_s := HOP_S * given / len(streams)) <= now_s:
            index = given % len(streams)
            streams[index].give(began_s + complete_s, sound.next(index))
            given += 1
        await asyncio.sleep(READ_S - (time.perf_counter() - began_s) % READ_S)


async def lived(ear: Ear, count: int, run_s: float, child: int | None = None) -> Run:
    """So many streams for so long, after a second that does not count."""
    sound = Sound(Case("live", count, HOP_SAMPLES))
    streams = [Stream(ear) for _ in range(count)]
    tasks = [asyncio.create_task(stream.run()) for stream in streams]
    await read(streams, sound, WARM_S)
    warm = [len(stream.latencies_s) for stream in streams]
    usage = Usage({"all": [os.getpid()], "child": [child] if child else []})
    began_s = time.perf_counter()
    await read(streams, sound, run_s)
    took_s, spent_s = time.perf_counter() - began_s, usage.seconds()
    for stream in streams:
        stream.end()
    await asyncio.gather(*tasks)
    pairs = zip(streams, warm, strict=True)
    latencies_s = [late_s for stream, at in pairs for late_s in stream.latencies_s[at:]]
    return Run(latencies_s, spent_s["all"] / took_s, spent_s["child"] / took_s)


async def most(ear: Ear, child: int | None, run_s: float) -> tuple[int, dict[str, float]]:
    """The most streams in time, and the figures of all that were tried; 0: no number was."""
    best, figures = 0, dict[str, float]()
    for count in MANY:
        run = await lived(ear, count, run_s, child)
        if not run.in_time:
            run = await lived(ear, count, run_s, child)
        figures |= run.figures(count)
        if not run.in_time:
            break
        best = count
    return best, figures


async def measure(rounds: int, run_s: float) -> report.Report:
    """A few streams, several times; then more and more."""
    reading = await lived(Deaf(), FEW, run_s)
    async with domain(Catalog(Path("models")).newest("speech")) as speech:
        child = speech.domain.pid
        few = [await lived(speech, FEW, run_s, child) for _ in range(rounds)]
        best, figures = await most(speech, child, run_s)
    middle = sorted(few, key=lambda run: run.all_cores)[rounds // 2]
    ratios = {
        "streams_realtime": report.Ratio.once(best, REALTIME),
        "cpu_20_streams": report.Ratio.of(
            [run.all_cores - reading.all_cores for run in few], CORES
        ),
    }
    figures = {"reading_20_cores": reading.all_cores} | middle.figures(FEW) | figures
    return report.Report.of("streams", ratios, figures)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    rounds, run_s = (ROUNDS_FULL, RUN_FULL_S) if asked.full else (ROUNDS, RUN_S)
    uvloop.run(measure(rounds, run_s)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
