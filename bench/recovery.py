"""How soon a model answers again: after its process died, after a swap, after a start.

The agent is the real one, `holdfast run`, with a tiny model, asked over HTTP by one client. A
worker is killed with SIGKILL while the client asks again and again; the time runs from the kill to
the next answer that is a 200. What is put beside each figure as a ratio is what it may take.

crash_spare_vs_100_ms   from the kill to the next answer, a spare process standing by; smaller is
                        better, as in all of these
crash_vs_1_s            the same without a spare
rollback_vs_1_s         `holdfast models rollback` from the disk: no former process stands by
first_vs_steady         the first answer after the domain was ready, against the median of later
                        ones on the same connection, each after the same pause; of several starts

`start_to_*_s`: from the start of `holdfast run` until the domain is ready, and until the first
answer. `swap_s`: an order to load another version, until it serves; `rollback_warm_s`: back to one
whose process stands by. Both go through the agent's socket, as the command does.
"""

import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from agent.cli.client import Client
from agent.errors import HoldfastError
from bench import report
from bench.forms import OPEN_BINARY
from bench.memory import NOBODY
from bench.served import SIZES, ring
from bench.servers import Server, free_port, running

MODEL = "tiny"
WAIT_S = 60.0
POLL_S = 0.002
STEADY = 20  # answers, whose median is the steady one
PAUSE_S = 0.05  # before each of them, as before the first: a processor at rest is slower at first
WARM = 20
TIMES, TIMES_FULL = 4, 25
STARTS, STARTS_FULL = 3, 15
VERSIONS = "import sys; from pathlib import Path; from bench.models import tiny, write; " + (
    "[write(Path(sys.argv[1]), 'tiny', tiny(seed), seed) for seed in (1, 2)]"
)


class Site:
    """An agent under measurement, and its client."""

    def __init__(self, server: Server, socket: Path, began_s: float) -> None:
        self.began_s = began_s
        self._orders = Client(socket, WAIT_S)
        self._request = OPEN_BINARY.write(MODEL, SIZES[MODEL][0], ring(MODEL)[0])
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)

    def connect(self) -> None:
        """Open the connection; nothing is asked."""
        self._connection.connect()

    def ask(self) -> int:
        """One call on a connection that stays; the status of its answer."""
        if self._connection.sock is None:
            self.connect()
        self._connection.sock.sendall(self._request)
        answer = http.client.HTTPResponse(self._connection.sock)
        answer.begin()
        answer.read()
        return answer.status

    def after_a_pause(self) -> float:
        """The seconds of one call; nothing was asked for a moment before it."""
        time.sleep(PAUSE_S)
        began_s = time.perf_counter()
        self.ask()
        return time.perf_counter() - began_s

    def answered(self) -> float:
        """Ask until there is a 200; when that was."""
        until(lambda: self.ask() == 200, "an answer")
        return time.perf_counter()

    def order(self, what: str, **body: Any) -> float:
        """To the model; the seconds it took."""
        began_s = time.perf_counter()
        self._orders.post(f"/api/v1/models/{MODEL}/{what}", body or None)
        return time.perf_counter() - began_s

    def domain(self) -> dict[str, Any]:
        """As the agent shows it."""
        found: dict[str, Any] = self._orders.get("/api/v1/domains")["models"]
        return found

    def ready(self) -> bool:
        """Whether the domain is, with all its processes."""
        try:
            return bool(self.domain()["ready"])
        except HoldfastError:  # the agent does not answer yet
            return False

    def whole(self, processes: int) -> None:
        """Until so many processes are there."""
        until(lambda: len(self.domain()["instances"]) == processes, "all processes")


def until(question: Callable[[], bool], what: str) -> None:
    end_s = time.perf_counter() + WAIT_S
    while not question():
        if time.perf_counter() > end_s:
            raise TimeoutError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(POLL_S)


@contextmanager
def site(root: Path, spare: int = 0, keep_previous_s: float = 300.0) -> Iterator[Site]:
    """The product with one domain."""
    port = free_port()
    domain = {
        "models": [MODEL],
        "threads": 1,
        "instances": {"min": 1, "max": 1, "spare": spare},
        "keep_previous_s": keep_previous_s,
        "restart_s_min": 0.01,
        "restart_s_max": 0.01,
        "quarantine_after": 1000,
    }
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        settings = {
            "link": {"broker_url": NOBODY, "ack_from": "ingest"},
            "store": {"path": str(folder / "holdfast.db")},
            "models": {"path": str(root)},
            "domains": {"models": domain},
            "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        holdfast = Path(sys.executable).with_name("holdfast")
        began_s = time.perf_counter()
        with running([holdfast, "run", "--config", config], port) as server:
            yield Site(server, folder / "holdfast.sock", began_s)


def crashes(root: Path, spare: int, times: int) -> list[float]:
    """Seconds without service after each kill."""
    took = []
    with site(root, spare) as found:
        until(found.ready, "the domain is ready")
        for _ in range(times):
            found.whole(1 + spare)
            for _ in range(WARM):
                found.ask()
            pid = found.domain()["pid"]
            began_s = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not _runs(pid), "it is dead")  # type: ignore[misc]
            took.append(found.answered() - began_s)
    return took


def _runs(pid: int) -> bool:
    """Whether a process still answers: neither gone nor a corpse."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def starts(root: Path, times: int) -> tuple[report.Ratio, dict[str, float]]:
    """The first answer against later ones, and how long a start takes."""
    ratios, to_ready, to_answer, firsts = [], list[float](), list[float](), list[float]()
    for _ in range(times):
        with site(root) as found:
            until(found.ready, "the domain is ready")
            to_ready.append(time.perf_counter() - found.began_s)
            found.connect()
            firsts.append(found.after_a_pause())
            to_answer.append(time.perf_counter() - found.began_s)
            steady = [found.after_a_pause() for _ in range(STEADY)]
            ratios.append(firsts[-1] / statistics.median(steady))
    return report.Ratio.of(ratios, 1.2), {
        "start_to_ready_s": statistics.median(to_ready),
        "start_to_answer_s": statistics.median(to_answer),
        "first_answer_ms": statistics.median(firsts) * 1000,
    }


def swaps(root: Path, times: int) -> tuple[dict[str, float], list[float]]:
    """Swaps and warm rollbacks; and rollbacks from the disk."""
    with site(root) as found:
        until(found.ready, "the domain is ready")
        swapped = [found.order("load", version=1)]
        warm = [found.order("rollback") for _ in range(times)]
    cold = []
    with site(root, keep_previous_s=0.0) as found:
        until(found.ready, "the domain is ready")
        swapped.append(found.order("load", version=1))
        for _ in range(times):
            time.sleep(0.2)  # the former process ends
            cold.append(found.order("rollback"))
            found.answered()
    figures = {"swap_s": statistics.median(swapped), "rollback_warm_s": statistics.median(warm)}
    return figures, cold


def main() -> None:
    asked = report.options(__doc__).parse_args()
    times = TIMES_FULL if asked.full else TIMES
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        root = Path(name) / "models"
        subprocess.run([sys.executable, "-c", VERSIONS, str(root)], check=True)
        first, figures = starts(root, STARTS_FULL if asked.full else STARTS)
        spare = crashes(root, 1, times)
        bare = crashes(root, 0, times)
        more, cold = swaps(root, times)
    ratios = {
        "crash_spare_vs_100_ms": report.Ratio.of([one / 0.1 for one in spare], 1.0),
        "crash_vs_1_s": report.Ratio.of(bare, 1.0),
        "rollback_vs_1_s": report.Ratio.of(cold, 1.0),
        "first_vs_steady": first,
    }
    figures |= more | {
        "crash_spare_ms": statistics.median(spare) * 1000,
        "crash_spare_ms_max": max(spare) * 1000,
        "crash_ms": statistics.median(bare) * 1000,
        "crash_ms_max": max(bare) * 1000,
    }
    report.Report.of("recovery", ratios, figures).show(as_json=asked.json)


if __name__ == "__main__":
    main()
