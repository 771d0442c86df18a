"""Hops of sound per second through the audio domain, against the same engine called in-process.

The domain is the real one (Speech, Domain, worker process, uvloop); the reference is the engine
that the worker runs, called in this process with the same calls in turn. Both run the network on
one thread. A hop is what the network hears at once: 256 samples, 16 ms.

streams16_vs_inprocess  16 streams in step, calls of 0.5 s of sound each, as live sources make them
file_vs_inprocess       one stream, calls of 2 s one after the other, as a recording is read
live_vs_inprocess       one stream, calls of 0.5 s; for information
hop_vs_inprocess        one stream, one hop a call: what a call costs; for information

Larger is better; 1 would be isolation for nothing.
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import uvloop
from msgspec import Struct
from numpy.typing import NDArray

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.zygote import Zygote
from agent.inference.engines.speech import Engine
from agent.inference.speech import FRESH, Speech
from agent.inference.wire import Part
from agent.records import RATE_HZ
from bench import report
from bench.unconfined import Unconfined

READY_S_MAX = 30.0
SIDE_S = 0.25  # how long one side of a pair runs, about
PAIRS, PAIRS_FULL = 15, 150
APART_SAMPLES = 17 * RATE_HZ // 4  # the streams' places in the sound: never two on the same spot


class Case(Struct, frozen=True):
    """So many streams, each with calls of so many samples; and the ratio asked for."""

    name: str
    streams: int
    samples: int
    target: float | None = None


CASES = [
    Case("streams16", 16, RATE_HZ // 2, 0.7),
    Case("file", 1, 2 * RATE_HZ, 0.7),
    Case("live", 1, RATE_HZ // 2),
    Case("hop", 1, 256),
]


class Run(Struct, frozen=True):
    """What one side of a pair did: hops heard, seconds in all, and seconds of each call."""

    hops: int
    elapsed_s: float
    calls_s: list[float]

    @property
    def rate(self) -> float:
        """Hops per second."""
        return self.hops / self.elapsed_s


class Sound:
    """The shipped recordings, one after the other, for ever, for several streams."""

    def __init__(self, case: Case) -> None:
        files = sorted(Path("samples").glob("*.flac"))
        pcm = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in files])
        self._pcm = np.tile(pcm, 2)  # a call may reach over the end
        self._length = len(pcm)
        self._samples = case.samples
        self._at = [i * APART_SAMPLES % self._length for i in range(case.streams)]

    def next(self, stream: int) -> bytes:
        """The next call's 16-bit samples of one stream."""
        at = self._at[stream]
        self._at[stream] = (at + self._samples) % self._length
        return self._pcm[at : at + self._samples].tobytes()


class Stopwatch:
    """Stands before the engine's session and adds up the seconds spent inside `run`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.spent_s = 0.0

    def run(self, outputs: list[str], inputs: dict[str, NDArray[np.float32]]) -> Any:
        """The session's own `run`."""
        began = time.perf_counter()
        answer = self._session.run(outputs, inputs)
        self.spent_s += time.perf_counter() - began
        return answer


class InProcess:
    """The reference: the engine in this process."""

    def __init__(self, case: Case, model: Model) -> None:
        self.engine = Engine(**model.options)
        self._sound = Sound(case)
        self._parts = [Part(case.samples)] * case.streams
        self._memories = np.zeros((case.streams, self.engine.memory_size), np.float32)

    def run(self, calls: int) -> Run:
        """So many calls; each answer is as complete as the domain's."""
        hops, calls_s, began = 0, [], time.perf_counter()
        for _ in range(calls):
            call = time.perf_counter()
            pcm = b"".join(self._sound.next(stream) for stream in range(len(self._parts)))
            answer = self.engine.listen(self._parts, np.frombuffer(pcm, np.int16), self._memories)
            self._memories = answer.memories
            hops += len(answer.speech)
            calls_s.append(time.perf_counter() - call)
        return Run(hops, time.perf_counter() - began, calls_s)


class Isolated:
    """The product: the streams of one case through the domain."""

    def __init__(self, case: Case, speech: Speech) -> None:
        self._speech = speech
        self._sound = Sound(case)
        self._memories = [FRESH] * case.streams

    async def run(self, calls: int) -> Run:
        """So many calls of every stream, all streams at once."""
        calls_s: list[float] = []
        began = time.perf_counter()
        hops = await asyncio.gather(
            *(self._one(i, calls, calls_s) for i in range(len(self._memories)))
        )
        return Run(sum(hops), time.perf_counter() - began, calls_s)

    async def _one(self, stream: int, calls: int, calls_s: list[float]) -> int:
        hops = 0
        for _ in range(calls):
            began = time.perf_counter()
            heard = await self._speech.hear(self._sound.next(stream), self._memories[stream])
            self._memories[stream] = heard.memory
            calls_s.append(time.perf_counter() - began)
            hops += len(heard.speech)
        return hops


@asynccontextmanager
async def domain(model: Model) -> AsyncIterator[Speech]:
    """The audio domain, ready; ended on leaving."""
    name, clock = model.manifest.name, Clock()
    settings = Settings(models=[name], class_="realtime")
    zygote = Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), zygote, 1)
    async with zygote, Domain("audio", settings, Parts(lambda: {name: model}, *ways)) as running:
        loop = asyncio.create_task(running.run())
        try:
            await asyncio.wait_for(running.ready.wait(), READY_S_MAX)
            yield Speech(running, name, clock)
        finally:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop


async def measured(
    case: Case, model: Model, speech: Speech, pairs: int
) -> tuple[report.Ratio, dict[str, float]]:
    """One case: the pairs, then the reference once more for where its time goes."""
    isolated = Isolated(case, speech)
    reference = InProcess(case, model)
    warm = reference.run(3)
    calls = max(3, round(SIDE_S / (warm.elapsed_s / 3)))
    await isolated.run(3)
    runs = [(await isolated.run(calls), reference.run(calls)) for _ in range(pairs)]
    ratio = report.Ratio.of([ours.rate / theirs.rate for ours, theirs in runs], case.target)
    ours_us = 1e6 / statistics.median(ours.rate for ours, _ in runs)
    theirs_us = 1e6 / statistics.median(theirs.rate for _, theirs in runs)
    cuts = statistics.quantiles((s for ours, _ in runs for s in ours.calls_s), n=100)
    session_us, framing_us = shares(reference, max(1, calls // 4), pairs)
    figures = {
        "hops_per_s": 1e6 / ours_us,
        "us_per_hop": ours_us,
        "inprocess_us_per_hop": theirs_us,
        "session_us_per_hop": session_us,
        "framing_us_per_hop": framing_us,
        "call_p50_us": cuts[49] * 1e6,
        "call_p99_us": cuts[98] * 1e6,
    }
    return ratio, {f"{case.name}_{key}": figure for key, figure in figures.items()}


def shares(reference: InProcess, calls: int, rounds: int) -> tuple[float, float]:
    """The reference's µs per hop inside `session.run`, and in the framing around it."""
    watch = Stopwatch(reference.engine._session)
    reference.engine._session = watch
    session_us, framing_us = [], []
    for _ in range(rounds):
        watch.spent_s = 0.0
        run = reference.run(calls)
        session_us.append(watch.spent_s / run.hops * 1e6)
        framing_us.append((run.elapsed_s - watch.spent_s) / run.hops * 1e6)
    return statistics.median(session_us), statistics.median(framing_us)


async def measure(pairs: int) -> report.Report:
    """All cases in one domain."""
    model = Catalog(Path("models")).newest("speech")
    ratios: dict[str, report.Ratio] = {}
    figures: dict[str, float] = {}
    async with domain(model) as speech:
        for case in CASES:
            ratio, found = await measured(case, model, speech, pairs)
            ratios[f"{case.name}_vs_inprocess"] = ratio
            figures |= found
    return report.Report.of("hops", ratios, figures)


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--pin", type=int, metavar="CPU", help="keep both sides on this one CPU")
    asked = parser.parse_args()
    if asked.pin is not None:
        os.sched_setaffinity(0, {asked.pin})  # the domain's child inherits it
    pairs = PAIRS_FULL if asked.full else PAIRS
    uvloop.run(measure(pairs)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
