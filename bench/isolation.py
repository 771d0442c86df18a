"""What other domains do to the latency of realtime ones: p99 under load, over p99 alone.

The agent is the real one, all of it, in this process (App): its HTTP door, its children under their
control groups where this machine has them. Of its domains three are realtime, and one of them after
the other is measured: `audio`, with eight live streams as in streams.py; `tiny` and `cnn` over
HTTP, one client that asks, waits for the answer, pauses, and asks again. Meanwhile another domain

saturates  a batch domain of two instances runs a network of some milliseconds, four calls at a time
leaks      a domain with a memory limit takes more and more, is killed by it, and starts again

or nobody does anything (alone). The slices of these follow each other in turn, so that whatever
else the machine does touches all.

p99_vs_alone   the worst of these six: smaller is better
*_vs_alone     each of them
p99_vs_awake   the same against another reference, for information: both CPUs are kept from sleeping
               by a program that runs only where nobody else wants to. A CPU that sleeps wakes late,
               and a virtual one that never sleeps is taken away by its host now and then: neither
               is the agent's doing, and here both sides have them alike
leak_kills     how often the leaking child was killed

The latencies of all slices of a kind are counted together; the spread is that of the slices' own.
"""

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

from agent.app import App
from agent.config import Config
from agent.errors import DomainError
from agent.inference import wire
from agent.inference.scheduler import Request
from bench import forms, report
from bench.hops import Case, Sound
from bench.load import Load
from bench.memory import NOBODY
from bench.pulse import Pulse
from bench.served import SIZES, ring
from bench.servers import free_port
from bench.streams import HOP_SAMPLES, Stream, read

STREAMS = 8
PAUSE_S = 0.005
SETTLE_S = 0.2  # of a slice, before it counts
SLICE_S = 1.0
ROUNDS, ROUNDS_FULL = 3, 30
TARGET = 1.5
BATCH_CLIENTS = 4
LEAK_BYTES_MAX = 256 << 20
LEAK_STEP_BYTES = 8 << 20
LEAK_PAUSE_S = 0.01
READY_S_MAX = 60.0
KINDS = ("alone", "awake", "saturated", "leaking")
LOADS = ("saturated", "leaking")
DOMAINS: dict[str, dict[str, Any]] = {
    "audio": {"models": ["speech"], "class": "realtime"},
    "tiny": {"models": ["tiny"], "class": "realtime", "threads": 1},
    "cnn": {"models": ["cnn"], "class": "realtime", "threads": 1},
    "pictures": {
        "models": ["cnn2"],
        "class": "batch",
        "threads": 1,
        "instances": {"min": 2, "max": 2},
    },
    "leak": {
        "models": ["hog"],
        "threads": 1,
        "memory_bytes_max": LEAK_BYTES_MAX,
        "restart_s_min": 0.1,
        "restart_s_max": 0.1,
        "quarantine_after": 100_000,
    },
}

Run = Callable[[float], Awaitable[list[float]]]


class Ears:
    """The live streams; they go on from slice to slice."""

    def __init__(self, app: App) -> None:
        self._sound = Sound(Case("live", STREAMS, HOP_SAMPLES))
        self._streams = [Stream(app.inference.speech) for _ in range(STREAMS)]
        self._tasks = [asyncio.create_task(stream.run()) for stream in self._streams]

    async def run(self, seconds: float) -> list[float]:
        """So long: the latency of each hop."""
        for stream in self._streams:
            stream.latencies_s.clear()
        await read(self._streams, self._sound, seconds)
        return [late_s for stream in self._streams for late_s in stream.latencies_s]

    async def end(self) -> None:
        """No more sound."""
        for stream in self._streams:
            stream.end()
        await asyncio.gather(*self._tasks)


class Leak:
    """Has a domain take more and more memory, for ever; what it answers does not matter."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            for size in range(LEAK_STEP_BYTES, 2 * LEAK_BYTES_MAX, LEAK_STEP_BYTES):
                try:
                    await self._take(size)
                except DomainError:
                    await asyncio.sleep(LEAK_PAUSE_S)
                    break
                await asyncio.sleep(LEAK_PAUSE_S)

    async def _take(self, size: int) -> None:
        body = np.array([size], np.int64).tobytes()
        infer = wire.Infer([wire.Tensor("bytes", "INT64", [1], len(body))])
        head = msgspec.Raw(msgspec.msgpack.encode(infer))
        await self._app.inference.scheduler.start(Request("hog", head, [body], len(body)))


class Loads:
    """What else goes on, while a slice is measured."""

    def __init__(self, app: App, batch: Load) -> None:
        self._leak = Leak(app)
        self._batch = batch

    @asynccontextmanager
    async def under(self, kind: str, seconds: float) -> AsyncIterator[None]:
        """One of KINDS, for so long at least."""
        with ExitStack() as stack:
            tasks = list[asyncio.Task[Any]]()
            match kind:
                case "awake":
                    for cpu in os.sched_getaffinity(0):
                        stack.enter_context(spinning(cpu))
                case "saturated":
                    volley = asyncio.to_thread(self._batch.run, BATCH_CLIENTS, seconds)
                    tasks.append(asyncio.create_task(volley))
                case "leaking":
                    tasks.append(asyncio.create_task(self._leak.run()))
            try:
                yield
            finally:
                if kind == "leaking":
                    tasks[0].cancel()
                for task in tasks:
                    with suppress(asyncio.CancelledError):
                        await task


class spinning:  # noqa: N801 (a context, as those of contextlib)
    """Keeps a CPU from sleeping, and gives way to everybody."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu

    def __enter__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(self._process.pid, {self._cpu})

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def agent(folder: Path, port: int) -> AsyncIterator[App]:
    """All of it, ready."""
    root = await asyncio.to_thread(repository, folder)
    settings = {
        "link": {"broker_url": NOBODY, "ack_from": "ingest"},
        "store": {"path": str(folder / "holdfast.db")},
        "models": {"path": str(root)},
        "domains": DOMAINS,
        "api": {"port": port, "socket": str(folder / "holdfast.sock")},
    }
    path = folder / "config.json"
    path.write_bytes(msgspec.json.encode(settings))
    app = App(msgspec.convert(settings, Config), path)
    task = asyncio.create_task(app.run())
    try:
        async with asyncio.timeout(READY_S_MAX):
            for domain in app.inference.domains.all():
                await domain.ready.wait()
        yield app
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # as an operator would end it
        await task


def repository(folder: Path) -> Path:
    """The models, written by a process of their own."""
    root = folder / "models"
    names = [model for one in DOMAINS.values() for model in one["models"] if model != "speech"]
    subprocess.run([sys.executable, "-m", "bench.models", str(root), *names], check=True)
    shutil.copytree("models/speech", root / "speech")
    return root


async def in_thread(pulse: Pulse, seconds: float) -> list[float]:
    """A pulse's latencies, without standing in the agent's way."""
    return await asyncio.to_thread(pulse.run, seconds)


def requests(model: str) -> list[bytes]:
    """To be asked in turn."""
    form = forms.OPEN_BINARY
    return [form.write(model, SIZES[model][0], values) for values in ring(model)]


async def measured(
    subjects: dict[str, Run], loads: Loads, rounds: int
) -> dict[tuple[str, str], list[list[float]]]:
    """Latencies by subject and kind, slice after slice."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(rounds):
        for name, run in subjects.items():
            for kind in KINDS:
                async with loads.under(kind, SETTLE_S + SLICE_S):
                    await run(SETTLE_S)
                    found.setdefault((name, kind), []).append(await run(SLICE_S))
    return found


def p99(latencies_s: list[float]) -> float:
    """What 99 % are not above."""
    return statistics.quantiles(latencies_s, n=100)[98]


def judged(
    found: dict[tuple[str, str], list[list[float]]],
) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """Ratios and figures."""
    figures = dict[str, float]()
    for (name, kind), slices in found.items():
        latencies_s = list(chain.from_iterable(slices))
        figures[f"{name}_{kind}_p50_ms"] = statistics.median(latencies_s) * 1e3
        figures[f"{name}_{kind}_p99_ms"] = p99(latencies_s) * 1e3
        figures[f"{name}_{kind}_max_ms"] = max(latencies_s) * 1e3
    loaded = [key for key in found if key[1] in LOADS]
    alone = {key: against("alone", found, key) for key in loaded}
    awake = [against("awake", found, key) for key in loaded]
    worst = max(alone.values(), key=lambda ratio: ratio.value)
    each = {f"{name}_{kind}_vs_alone": ratio for (name, kind), ratio in alone.items()}
    whole = {
        "p99_vs_alone": report.Ratio(worst.value, TARGET, worst.spread),
        "p99_vs_awake": max(awake, key=lambda ratio: ratio.value),
    }
    return whole | each, figures


def against(
    kind: str, found: dict[tuple[str, str], list[list[float]]], key: tuple[str, str]
) -> report.Ratio:
    """The p99 under a load over that of the same subject under `kind`."""
    ours, theirs = found[key], found[key[0], kind]
    pairs = [p99(mine) / p99(other) for mine, other in zip(ours, theirs, strict=True)]
    value = p99(list(chain.from_iterable(ours))) / p99(list(chain.from_iterable(theirs)))
    return report.Ratio(report.Ratio.once(value).value, None, report.Ratio.of(pairs).spread)


async def measure(rounds: int) -> report.Report:
    """The agent, its callers, and all slices."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name, ExitStack() as stack:
        async with agent(Path(name), port) as app:
            batch = stack.enter_context(Load(port, requests("cnn2")))
            ears = Ears(app)
            subjects: dict[str, Run] = {"audio": ears.run}
            for model in ("tiny", "cnn"):
                pulse = stack.enter_context(Pulse(port, requests(model), PAUSE_S))
                subjects[model] = partial(in_thread, pulse)
            found = await measured(subjects, Loads(app, batch), rounds)
            await ears.end()
            kills = app.inference.domains.named("leak").restarts
            await asyncio.to_thread(stack.close)
    ratios, figures = judged(found)
    return report.Report.of("isolation", ratios, figures | {"leak_kills": kills})


def main() -> None:
    asked = report.options(__doc__).parse_args()
    rounds = ROUNDS_FULL if asked.full else ROUNDS
    uvloop.run(measure(rounds)).show(as_json=asked.json)


if __name__ == "__main__":
    main()
