"""How much memory the idle agent takes: each of its processes, and all of them together.

The agent is started for real, `holdfast run` on a configuration with one empty folder as its source
and a broker that nobody runs, and read once its domain is ready and its memory steady. RSS counts
every mapped page whole; PSS shares a page out among all that map it, so PSS alone may be added up.
Python processes outside the agent that map the same libraries make its PSS smaller; its anonymous
memory (heaps, relocated code) does not depend on them.

idle_vs_onnxruntime  PSS of the whole agent against that of a process that did nothing but
                     `import onnxruntime`; smaller is better.
"""

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from msgspec import Struct

from agent.cli.client import Client
from agent.errors import AgentUnreachable
from bench import report

KIB_PER_MIB = 1024
POLL_S = 0.1
READY_S_MAX = 30.0
STEADY_MIB = 0.25
STEADY_S = 3.0  # steady: all readings of so long within STEADY_MIB
STEADY_S_MAX = 30.0
END_S_MAX = 10.0
NOBODY = "mqtt://127.0.0.1:1"
ROLES = {"hf-worker": "audio_domain", "hf-zygote": "zygote", "agent.sync.broker": "embedded_broker"}
BARE = {"python": "pass", "onnxruntime": "import onnxruntime"}


class Memory(Struct, frozen=True):
    """Resident memory of one process, in MiB; `anonymous` is what no file on disk backs."""

    rss: float
    pss: float
    anonymous: float


def memory_of(pid: int) -> Memory:
    """As the kernel counts it now."""
    rows = (row.split() for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    mib = {row[0]: int(row[1]) / KIB_PER_MIB for row in rows}
    return Memory(mib["Rss:"], mib["Pss:"], mib["Anonymous:"])


def family(pid: int) -> dict[str, Memory]:
    """The agent and its children, by role."""
    found = {"agent": memory_of(pid)}
    for child in psutil.Process(pid).children(recursive=True):
        words = [child.name(), *child.cmdline()]
        role = next((ROLES[word] for word in words if word in ROLES), words[0])
        found[role] = memory_of(child.pid)
    return found


def total_pss(found: dict[str, Memory]) -> float:
    return sum(memory.pss for memory in found.values())


def steady(pid: int) -> dict[str, Memory]:
    """The agent's memory once it no longer moves; the last reading if it never rests."""
    readings: deque[float] = deque(maxlen=round(STEADY_S / POLL_S))
    deadline = time.monotonic() + STEADY_S_MAX
    while True:
        found = family(pid)
        readings.append(total_pss(found))
        full = len(readings) == readings.maxlen
        if (full and max(readings) - min(readings) <= STEADY_MIB) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def configuration(folder: Path, broker_url: str | None) -> Path:
    """A configuration file in `folder` for an agent with nothing to do; no broker: embedded."""
    inbox = folder / "inbox"
    inbox.mkdir()
    link = {"broker_url": broker_url, "ack_from": "ingest"} if broker_url else {}
    settings: dict[str, Any] = {
        "link": link or {"ack_from": "broker"},
        "store": {"path": str(folder / "holdfast.db")},
        "audio": {"sources": [{"kind": "folder", "name": "inbox", "path": str(inbox)}]},
        "api": {"port": 0, "socket": str(folder / "holdfast.sock")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def running(broker_url: str | None) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """An agent of its own; ended as an operator would."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        config = configuration(folder, broker_url)
        log = folder / "log"
        command = [str(Path(sys.executable).with_name("holdfast")), "run", "--config", str(config)]
        with log.open("wb") as sink:
            process = subprocess.Popen(command, stderr=sink)
        try:
            yield process, Client(folder / "holdfast.sock")
        except Exception:  # whatever it was, the agent's own words explain it
            sys.stderr.write(log.read_text(errors="replace"))
            raise
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; kill it if it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_ready(process: subprocess.Popen[bytes], client: Client, *, connected: bool) -> None:
    """Until the domain is ready and, if asked for, the link is connected."""
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            status = client.get("/api/v1/status")
        except AgentUnreachable:
            status = None
        if (
            status
            and status["domains"]["audio"]["ready"]
            and (status["link"]["connected"] or not connected)
        ):
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"the agent was not ready within {READY_S_MAX} s, or ended")


def idle(broker_url: str | None) -> dict[str, Memory]:
    """Start an agent, let it come to rest, read its memory, end it."""
    with running(broker_url) as (process, client):
        await_ready(process, client, connected=broker_url is None)
        return steady(process.pid)


def bare(statement: str) -> Memory:
    """A Python that runs one statement and waits to be read."""
    program = f"{statement}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        if not process.stdout.readline():
            raise ChildProcessError(f"`{statement}` failed")
        memory = memory_of(process.pid)
        process.stdin.write(b"\n")
    return memory


def figures(prefix: str, rounds: list[dict[str, Memory]]) -> dict[str, float]:
    """The medians of each process and of all together."""
    found: dict[str, float] = {}
    for role in rounds[0]:
        found[f"{prefix}_{role}_rss_mib"] = statistics.median(r[role].rss for r in rounds)
        found[f"{prefix}_{role}_pss_mib"] = statistics.median(r[role].pss for r in rounds)
    found[f"{prefix}_all_pss_mib"] = statistics.median(map(total_pss, rounds))
    anonymous = [sum(memory.anonymous for memory in r.values()) for r in rounds]
    found[f"{prefix}_all_anonymous_mib"] = statistics.median(anonymous)
    return found


def main() -> None:
    asked = report.options(__doc__).parse_args()
    agents: list[dict[str, Memory]] = []
    bares: list[dict[str, Memory]] = []
    for _ in range(20 if asked.full else 4):
        agents.append(idle(NOBODY))
        bares.append({name: bare(statement) for name, statement in BARE.items()})
    with_broker = [idle(None) for _ in range(5 if asked.full else 1)]
    pairs = [total_pss(a) / b["onnxruntime"].pss for a, b in zip(agents, bares, strict=True)]
    found = figures("idle", agents) | figures("with_broker", with_broker)
    for name in BARE:
        found[f"bare_{name}_rss_mib"] = statistics.median(b[name].rss for b in bares)
        found[f"bare_{name}_pss_mib"] = statistics.median(b[name].pss for b in bares)
    ratios = {"idle_vs_onnxruntime": report.Ratio.of(pairs)}
    report.Report.of("memory", ratios, found).show(as_json=asked.json)


if __name__ == "__main__":
    main()
