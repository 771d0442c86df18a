"""What it costs when an accelerator fails: until the CPU answers, and until the way back is gone.

The agent is the real one, `holdfast run`, with a small network of some milliseconds, asked over
HTTP. Its GPU is played (tests/inference/domains/gpu): real worker processes that call themselves
CUDA, and raise ONNX Runtime's own errors when they are told to; on the CPU they are made slower by
CPU_SLOW_S a call. So the times are those of the agent, not of a GPU. CLIENTS ask again and again
while a CUDA context is poisoned; the time runs from the start of the first call that meets it to
the first answer from the CPU.

switch_preloaded_vs_100_ms  with a twin that stands by (class realtime); smaller is better, as in
                            the next two
switch_at_fault_vs_1_s      with a twin that is made then
lost_preloaded, lost_at_fault  calls that were accepted and had no answer: none may be
refused_preloaded           calls that were not accepted meanwhile: none may be
cost_told_vs_seen           how many times as long a call takes there, as the agent says it, against
                            what the clients saw; about 1

`twin_mib` is the memory of the twin that stands by; `return_s` runs from the repair to the first
answer from the GPU, with PROBES probes that must pass, PROBE_S apart.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from agent.cli.client import Client
from bench import report
from bench.forms import OPEN_BINARY
from bench.memory import NOBODY
from bench.recovery import until
from bench.served import SIZES, ring
from bench.servers import Server, free_port, running

GPU = Path(__file__).parents[1] / "tests/inference/domains/gpu"
HOLDFAST = Path(sys.executable).with_name("holdfast")
MODEL = "cnn"
CLIENTS = 4
CPU_SLOW_S = 0.02
PROBES, PROBE_S = 2, 0.1
STEADY = 40  # answers before and after, whose medians are compared
TIMES, TIMES_FULL = 3, 20
WAIT_S = 60.0


class Seen(NamedTuple):
    """One answer, as its caller saw it. `ep` is empty where there was none."""

    began_s: float
    ended_s: float
    status: int
    ep: str

    @property
    def took_s(self) -> float:
        """Until its answer."""
        return self.ended_s - self.began_s


class Site:
    """An agent on a played GPU."""

    def __init__(self, server: Server, socket: Path, gpu: Path) -> None:
        self.server = server
        self._orders = Client(socket, WAIT_S)
        self._gpu = gpu

    def breaks(self, **wrong: Any) -> None:
        """The GPU is so from now on; nothing: it is well."""
        fresh = self._gpu.with_suffix(".new")
        fresh.write_text(json.dumps({"cpu_slow_s": CPU_SLOW_S, **wrong}))
        fresh.replace(self._gpu)

    def domain(self) -> dict[str, Any]:
        """As the agent shows it."""
        found: dict[str, Any] = self._orders.get("/api/v1/domains")["d"]
        return found

    def stands(self, *, twin: bool) -> bool:
        """Whether it answers on the GPU, with its twin standing by if there is to be one."""
        found = self.domain()
        ready = found["ready"] and not found["fallen"]
        return bool(ready and (not twin or found["cpu_twin"] == "ready"))


class Callers:
    """Ask until they are told to end."""

    def __init__(self, port: int) -> None:
        self.seen: list[Seen] = []
        self._request = OPEN_BINARY.write(MODEL, SIZES[MODEL][0], ring(MODEL)[0])
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port,)) for _ in range(CLIENTS)]
        for one in self._threads:
            one.start()

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.connect()
        while not self._ends.is_set():
            began_s = time.perf_counter()
            connection.sock.sendall(self._request)
            answer = http.client.HTTPResponse(connection.sock)
            answer.begin()
            content = answer.read()
            ep = next((one for one in ("CUDA", "CPU") if one.encode() in content[:4096]), "")
            ep = ep if answer.status == 200 else ""
            self.seen.append(Seen(began_s, time.perf_counter(), answer.status, ep))
            if answer.status == 503:
                time.sleep(0.005)
        connection.close()

    def more(self, ep: str, since: int, count: int) -> None:
        """Until so many answers have come from there since that one."""
        until(lambda: sum(one.ep == ep for one in self.seen[since:]) >= count, f"answers by {ep}")

    def end(self) -> None:
        """Returns when each has its last answer."""
        self._ends.set()
        for one in self._threads:
            one.join()


@contextmanager
def site(root: Path, cpu_twin: str) -> Iterator[Site]:
    """The product with one domain."""
    port = free_port()
    domain = {
        **{"models": [MODEL], "threads": 1, "devices": ["cuda", "cpu"], "cpu_twin": cpu_twin},
        **{"probe_s_min": PROBE_S, "probe_s_max": PROBE_S, "probes_min": PROBES},
        **{"class": "realtime", "keep_previous_s": 0.0, "restart_s_min": 0.01},
    }
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        settings = {
            "link": {"broker_url": NOBODY, "ack_from": "ingest"},
            "store": {"path": str(folder / "holdfast.db")},
            "models": {"path": str(root)},
            "domains": {"d": domain},
            "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        }
        config, gpu = folder / "config.yaml", folder / "gpu.json"
        config.write_text(yaml.safe_dump(settings))
        os.environ |= {"PYTHONPATH": str(GPU), "PLAYED_GPU": str(gpu)}
        with running([HOLDFAST, "run", "--config", config], port) as server:
            found = Site(server, folder / "holdfast.sock", gpu)
            found.breaks()
            server.first(OPEN_BINARY.write(MODEL, SIZES[MODEL][0], ring(MODEL)[0]))
            until(lambda: found.stands(twin=cpu_twin == "preloaded"), "it stands")
            yield found


class Fall(NamedTuple):
    """What one fault cost."""

    switch_s: float
    back_s: float
    lost: int
    refused: int
    told: float
    seen: float


def fall(found: Site, *, preloaded: bool) -> Fall:
    """Poison the context amid calls, and mend it."""
    until(lambda: found.stands(twin=preloaded), "it stands")
    callers = Callers(found.server.port)
    try:
        callers.more("CUDA", 0, STEADY)
        broken = len(callers.seen)
        found.breaks(sticky=True)
        callers.more("CPU", broken, STEADY)
        told = found.domain()["fallen"][MODEL]["cost_ratio"]
        mended, mended_s = len(callers.seen), time.perf_counter()
        found.breaks()
        callers.more("CUDA", mended, 1)
    finally:
        callers.end()
    seen = callers.seen
    first = min((one for one in seen[broken:] if one.ep == "CPU"), key=lambda one: one.ended_s)
    last_s = max(one.ended_s for one in seen if one.ep == "CUDA" and one.ended_s < first.ended_s)
    back_s = next(one.ended_s for one in seen[mended:] if one.ep == "CUDA")
    by_ep = {
        ep: statistics.median(one.took_s for one in seen[:mended] if one.ep == ep)
        for ep in ("CUDA", "CPU")
    }
    return Fall(
        first.ended_s - max(first.began_s, last_s),
        back_s - mended_s,
        sum(one.status not in (200, 503) for one in seen),
        sum(one.status == 503 for one in seen),
        told,
        by_ep["CPU"] / by_ep["CUDA"],
    )


def main() -> None:
    asked = report.options(__doc__).parse_args()
    times = TIMES_FULL if asked.full else TIMES
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        root = Path(name) / "models"
        made = [sys.executable, "-m", "bench.models", str(root), MODEL]
        subprocess.run(made, check=True)
        with site(root, "at_fault") as found:
            alone = found.server.memory()
            cold = [fall(found, preloaded=False) for _ in range(times)]
        with site(root, "preloaded") as found:
            both = found.server.memory()
            warm = [fall(found, preloaded=True) for _ in range(times)]
    ratios = {
        "switch_preloaded_vs_100_ms": report.Ratio.of([one.switch_s / 0.1 for one in warm], 1.0),
        "switch_at_fault_vs_1_s": report.Ratio.of([one.switch_s for one in cold], 1.0),
        "lost_preloaded": report.Ratio.once(sum(one.lost for one in warm), 0.0),
        "lost_at_fault": report.Ratio.once(sum(one.lost for one in cold), 0.0),
        "refused_preloaded": report.Ratio.once(sum(one.refused for one in warm), 0.0),
        "cost_told_vs_seen": report.Ratio.of([one.told / one.seen for one in warm], 1.0),
    }
    figures = {
        "switch_preloaded_ms": statistics.median(one.switch_s for one in warm) * 1000,
        "switch_preloaded_ms_max": max(one.switch_s for one in warm) * 1000,
        "switch_at_fault_ms": statistics.median(one.switch_s for one in cold) * 1000,
        "switch_at_fault_ms_max": max(one.switch_s for one in cold) * 1000,
        "refused_at_fault_calls": statistics.median(one.refused for one in cold),
        "cost_told_times": statistics.median(one.told for one in warm),
        "cost_seen_times": statistics.median(one.seen for one in warm),
        "return_s": statistics.median(one.back_s for one in warm),
        "twin_mib": both.pss - alone.pss,
        "twin_anonymous_mib": both.anonymous - alone.anonymous,
    }
    report.Report.of("twins", ratios, figures).show(as_json=asked.json)


if __name__ == "__main__":
    main()
