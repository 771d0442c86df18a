"""The sides of bench.serving: the models' inputs, the loop that knows the answers, the servers.

This process maps no numpy and no ONNX Runtime: what a server maps would be shared with it, and so
counted for less.
"""

import math
import random
import statistics
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import yaml
from msgspec import Struct

from bench.forms import FLOAT_BYTES, Floats, Form
from bench.load import Load, Volley
from bench.memory import NOBODY
from bench.servers import Memory, Server, free_port, running

SIDE_S = 0.6  # how long one side of a pair runs
WARM_S = 0.3
CLIENTS = 8
RING = 16  # different inputs
SEED = 20_261_121
TOLERANCE = 1e-3  # of an answer, in all; the engines are the same, their batches need not be
SIZES = {  # of an input and an output
    "tiny": ((1, 64), 10),
    "cnn": ((1, 3, 224, 224), 1000),
    "cnn2": ((1, 3, 224, 224), 1000),
}
DOMAINS: dict[str, dict[str, Any]] = {
    "tiny": {"models": ["tiny"], "threads": 1},
    "cnn": {"models": ["cnn"], "threads": 1},
    "cnn2": {
        "models": ["cnn2"],
        "threads": 1,
        "instances": {"min": 2, "max": 2, "spare": 0},
    },
}


def ring(model: str) -> "list[Floats[float]]":
    """The inputs of a model, always the same."""
    source = random.Random(SEED)
    length = math.prod(SIZES[model][0])
    return [array("f", (source.uniform(-1, 1) for _ in range(length))) for _ in range(RING)]


class Raw:
    """The loop without a server; it also says what the right answers are."""

    def __init__(self, model: str, root: Path, stack: ExitStack) -> None:
        size = SIZES[model][1]
        self.inputs = ring(model)
        given, taken = root / f"{model}.inputs", root / f"{model}.outputs"
        given.write_bytes(b"".join(values.tobytes() for values in self.inputs))
        path = root / model / "1" / "model.onnx"
        command = [sys.executable, "-m", "bench.reference", "raw", *map(str, (path, given, taken))]
        self._process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        )
        stack.callback(cast(IO[str], self._process.stdin).close)
        cast(IO[str], self._process.stdout).readline()  # it is ready
        content, step = taken.read_bytes(), size * FLOAT_BYTES
        self.outputs = [array("f", content[at : at + step]) for at in range(0, len(content), step)]

    def rate(self, seconds: float) -> float:
        """Inferences per second."""
        print(seconds, file=self._process.stdin, flush=True)
        return float(cast(IO[str], self._process.stdout).readline())


class Client:
    """Asks one server about one model, in one form, and checks what it says."""

    def __init__(self, server: Server, model: str, form: Form, raw: Raw, stack: ExitStack) -> None:
        self._form = form
        self._model = model
        self._raw = raw
        self.requests = requests(model, form, raw.inputs)
        self._load = stack.enter_context(Load(server.port, self.requests, varies=form.varies))

    def run(self, clients: int, seconds: float) -> Volley:
        """One volley, checked."""
        volley = self._load.run(clients, seconds)
        for place, body in volley.bodies.items():
            said = self._form.read(body, SIZES[self._model][1])
            check(said, self._raw.outputs[place], f"{self._model}, input {place}")
        return volley


def requests(model: str, form: Form, inputs: "list[Floats[float]]") -> list[bytes]:
    """Ready to be sent."""
    return [form.write(model, SIZES[model][0], values) for values in inputs]


def check(said: "Floats[float]", expected: "Floats[float]", what: str) -> None:
    """Raises ValueError where a server's numbers are not those of the session."""
    apart = [abs(ours - right) for ours, right in zip(said, expected, strict=True)]
    wrong = [difference for difference in apart if not difference <= TOLERANCE]  # NaN is, too
    if wrong:
        raise ValueError(f"{what}: an answer is {wrong[0]} from what the session says")


def repository(folder: Path) -> Path:
    """The models, written by a process of their own: this one maps no numpy."""
    root = folder / "models"
    subprocess.run([sys.executable, "-m", "bench.models", str(root)], check=True)
    return root


@contextmanager
def agent(root: Path, *domains: str) -> Iterator[Server]:
    """The product with these domains, and nobody to talk to."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        settings = {
            "link": {"broker_url": NOBODY, "ack_from": "ingest"},
            "store": {"path": str(folder / "holdfast.db")},
            "models": {"path": str(root)},
            "domains": {domain: DOMAINS[domain] for domain in domains},
            "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        holdfast = Path(sys.executable).with_name("holdfast")
        with running([holdfast, "run", "--config", config], port) as server:
            yield server


@contextmanager
def inprocess(root: Path) -> Iterator[Server]:
    """The reference with a server."""
    port = free_port()
    command = [sys.executable, "-m", "bench.reference", "serve", str(root), str(port)]
    with running(command, port) as server:
        yield server


class Start(Struct, frozen=True):
    """Of a server with the tiny model: the time to its first answer, and memory after a volley."""

    first_s: float
    memory: Memory

    def figures(self, name: str) -> dict[str, float]:
        """For the report."""
        return {
            f"{name}_first_s": self.first_s,
            f"{name}_pss_mib": self.memory.pss,
            f"{name}_anonymous_mib": self.memory.anonymous,
        }


def alone(server: Server, form: Form) -> Start:
    """Ask a server that was just started. Nothing else may run that maps ONNX Runtime."""
    asked = requests("tiny", form, ring("tiny"))
    first_s = server.first(asked[0])
    with Load(server.port, asked, varies=form.varies) as load:
        load.run(CLIENTS, WARM_S)
    return Start(first_s, server.memory())


def latencies(name: str, volleys: list[Volley]) -> dict[str, float]:
    """Of all these volleys' answers, and their rate."""
    cuts = statistics.quantiles((s for one in volleys for s in one.latencies_s), n=100)
    return {
        f"{name}_per_s": statistics.median(one.rate for one in volleys),
        f"{name}_p50_us": cuts[49] * 1e6,
        f"{name}_p99_us": cuts[98] * 1e6,
    }
