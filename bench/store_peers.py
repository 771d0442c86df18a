"""Other stores beside ours: eight producers, 512 bytes a record, in turn with our side.

Each runs in a child with an environment of its own, made on demand from bench/peers/NAME:
requirements.txt (hashes), runner.py. Its files lie beside ours.

append_8_vs_persist_queue         SQLiteAckQueue, 8 threads, each `put` a commit and an fsync
append_8_vs_thingsboard_gateway   SQLiteEventStorage, 8 threads, timed until a reader sees all rows
                                  in its file; for information, since its `put` returns when the
                                  message lies in memory, and its commits (synchronous=NORMAL) are
                                  not fsynced: a power cut loses what either had answered.
"""

import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import report

PRODUCERS = 8
SIDE_S = 0.5  # how long a peer's side runs, about
PEERS = {"persist-queue": 3.0, "thingsboard-gateway": None}  # and the ratio asked for
HOME = Path(__file__).parent / "peers"


def environment(peer: str) -> Path:
    """The peer's Python, installed if it is not."""
    home = HOME / peer
    python = home / ".venv" / "bin" / "python"
    done = home / ".venv" / "installed"
    if not done.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", home / ".venv"], check=True)
        subprocess.run(
            [*pip, "--no-deps", "--require-hashes", "-r", str(home / "requirements.txt")],
            check=True,
        )
        done.touch()
    return python


@contextmanager
def running(peer: str, folder: Path) -> Iterator[Callable[[int], float]]:
    """The peer's child; called with puts a producer, it answers with records per second."""
    runner = HOME / peer / "runner.py"
    command = list(map(str, (environment(peer), runner, folder / peer, PRODUCERS)))
    (folder / peer).mkdir()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        to, answers = child.stdin, child.stdout

        def run(puts: int) -> float:
            print(puts, file=to, flush=True)
            return PRODUCERS * puts / float(answers.readline())

        yield run
        to.close()


async def measured(
    ours: Callable[[int], Awaitable[float]], folder: Path, pairs: int
) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """Each peer; `ours` is given awaits a producer and answers with records per second."""
    ratios: dict[str, report.Ratio] = {}
    figures: dict[str, float] = {}
    for peer, target in PEERS.items():
        name = peer.replace("-", "_")
        with running(peer, folder) as theirs:
            puts = max(20, round(theirs(100) * SIDE_S / PRODUCERS))
            awaits = max(20, round(await ours(100) * SIDE_S / PRODUCERS))
            pair = [(await ours(awaits), theirs(puts)) for _ in range(pairs)]
        ratios[f"append_{PRODUCERS}_vs_{name}"] = report.Ratio.of([a / b for a, b in pair], target)
        figures[f"{name}_records_per_s"] = statistics.median(b for _, b in pair)
    return ratios, figures
