"""Live streams by WebSocket through a real agent, over TCP: 20 and 50 at once in real time.

Each sends a hop (256 samples, 16 ms) each 16 ms, is heard, and kept; bench/live_load.py is the
load, in a process of its own, and says how a hop's latency is counted. That a denoised sample needs
the hop behind it is 16 ms that no machine saves, and not in it. What bench/streams.py calls in time
holds here: 99 % of the hops are back within 20 ms, and all within 100 ms.

late_20, late_50      hops that came later than 100 ms; target 0
p99_ms_20, p99_ms_50  what 99 % of the hops are not later than, in ms; the median of the rounds

The figures of a number of streams: `_agent_cores` is the agent alone, `_worker_cores` its children;
`_load_late_ms` how late the load itself sent 99 % of its hops, which no agent can help. `_unkept`:
with keep=false, where nothing goes into the store.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec
import psutil
import yaml
from msgspec import Struct

from bench import report
from bench.live_load import Found, Order
from bench.memory import NOBODY
from bench.servers import Server, free_port, running
from bench.streams import LATEST_S_MAX, P99_S_MAX
from bench.usage import Usage

COUNTS = (20, 50)
WARM_S, RUN_S, RUN_FULL_S = 2.0, 5.0, 30.0
ROUNDS, ROUNDS_FULL = 2, 5
READY = b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Run(Struct, frozen=True):
    """One round: what the load saw, and parts of a core."""

    found: Found
    agent_cores: float
    worker_cores: float

    @property
    def p99_s(self) -> float:
        """What 99 % of the hops are not later than."""
        return statistics.quantiles(self.found.latencies_s, n=100)[98]

    @property
    def late(self) -> int:
        """Hops that came later than may be."""
        return sum(one > LATEST_S_MAX for one in self.found.latencies_s)


@contextmanager
def agent() -> Iterator[Server]:
    """The product, with nobody to talk to."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        settings = {
            "link": {"broker_url": NOBODY, "ack_from": "ingest"},
            "store": {"path": str(folder / "holdfast.db")},
            "models": {"path": str(Path("models").resolve())},
            "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        holdfast = Path(sys.executable).with_name("holdfast")
        with running([holdfast, "run", "--config", config], port) as server:
            server.first(READY)
            yield server


def lived(server: Server, streams: int, run_s: float, *, keep: bool = True) -> Run:
    """So many streams for so long. Raises ValueError where samples are missing."""
    with tempfile.NamedTemporaryFile(suffix=".json") as into:
        order = Order(server.port, streams, WARM_S, run_s, keep, into.name)
        command = [sys.executable, "-m", "bench.live_load", msgspec.json.encode(order).decode()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
            said = cast(IO[str], load.stdout)
            said.readline()  # it is warm
            pid = server.process.pid
            workers = [one.pid for one in psutil.Process(pid).children()]
            usage = Usage({"all": [pid], "workers": workers})
            said.readline()  # it is over
            spent_s = usage.seconds()
        if load.returncode:
            raise ChildProcessError(f"the load ended with {load.returncode}")
        found = msgspec.json.decode(Path(into.name).read_bytes(), type=Found)
    if found.sent != found.answered or found.troubles:
        told = f"{len(found.troubles)} troubles, as {found.troubles[:1]}"
        raise ValueError(f"sent {sum(found.sent)}, answered {sum(found.answered)} samples; {told}")
    all_s, workers_s = spent_s["all"], spent_s["workers"]
    return Run(found, (all_s - workers_s) / run_s, workers_s / run_s)


def figures(runs: list[Run], name: str) -> dict[str, float]:
    """Of several rounds, for the report."""
    latencies_s = [one_s for run in runs for one_s in run.found.latencies_s]
    late_s = [one_s for run in runs for one_s in run.found.late_s]
    cuts = statistics.quantiles(latencies_s, n=100)
    found = {
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
        "latest_ms": max(latencies_s) * 1e3,
        "agent_cores": statistics.median(run.agent_cores for run in runs),
        "worker_cores": statistics.median(run.worker_cores for run in runs),
        "load_late_ms": statistics.quantiles(late_s, n=100)[98] * 1e3,
    }
    return {f"{name}_{key}": figure for key, figure in found.items()}


def measure(rounds: int, run_s: float) -> report.Report:
    """Each number of streams several times, in turn; then once without a store."""
    with agent() as server:
        runs: dict[int, list[Run]] = {count: [] for count in COUNTS}
        for _ in range(rounds):
            for count in COUNTS:
                runs[count].append(lived(server, count, run_s))
        unkept = {count: [lived(server, count, run_s, keep=False)] for count in COUNTS}
    ratios, found = dict[str, report.Ratio](), dict[str, float]()
    for count in COUNTS:
        late = sum(run.late for run in runs[count])
        middle_s = statistics.median(run.p99_s for run in runs[count])
        ratios[f"late_{count}"] = report.Ratio.once(late, 0)
        ratios[f"p99_ms_{count}"] = report.Ratio.once(middle_s * 1e3, P99_S_MAX * 1e3)
        found |= figures(runs[count], f"live{count}")
        found |= figures(unkept[count], f"live{count}_unkept")
    return report.Report.of("live", ratios, found)


def main() -> None:
    asked = report.options(__doc__).parse_args()
    rounds, run_s = (ROUNDS_FULL, RUN_FULL_S) if asked.full else (ROUNDS, RUN_S)
    measure(rounds, run_s).show(as_json=asked.json)


if __name__ == "__main__":
    main()
