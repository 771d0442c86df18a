"""Other model servers beside the agent: the same models, the same clients, the same machine.

Each peer is a server of its own, in an environment of its own (bench/peers/NAME: requirements.txt
with hashes, runner.py), in what is its fastest ordinary form here: raw bodies where it takes them,
batching where it pays. One runs at a time, in turn with the agent, first with one worker and then,
with the larger model alone, with two.

tiny_c8_vs_NAME, cnn_c8_vs_NAME   answers per second, the agent's against the peer's
cnn2_c8_vs_NAME                   two instances against two workers
cnn_c8_vs_best_peer               the smallest of these: of all peers,
cnn_c8_vs_best_isolated           and of those that keep the model out of the server's process
pss_vs_NAME, first_vs_NAME        memory, and the time from the start to the first answer

MLServer takes no binary bodies, and BentoML calls the model in the process that serves.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from bench import forms, report
from bench.forms import Form
from bench.served import (
    CLIENTS,
    SIDE_S,
    WARM_S,
    Client,
    Raw,
    Start,
    alone,
    latencies,
)
from bench.servers import Server, free_port, running
from bench.store_peers import HOME, environment

BEST_TARGET = 1.7


class Peer(Struct, frozen=True):
    """One of them; `tiny_target`: the ratio asked for with the tiny model at eight clients."""

    name: str
    folder: str
    form: Form
    workers: int = 1
    isolated: bool = True
    tiny_target: float | None = None
    pss_target: float | None = None


PEERS = [
    Peer("litserve", "litserve", forms.OCTETS_ONLY, tiny_target=8.0, pss_target=0.75),
    Peer("pytriton", "pytriton", forms.OPEN_BINARY, tiny_target=15.0),
    Peer("mlserver", "mlserver", forms.OPEN_JSON),
    Peer("mlserver_inprocess", "mlserver", forms.OPEN_JSON, workers=0, isolated=False),
    Peer("bentoml", "bentoml", forms.OCTETS_ONLY, isolated=False),
]
Found = tuple[dict[str, report.Ratio], dict[str, float]]


@contextmanager
def serving(peer: Peer, root: Path, model: str, workers: int) -> Iterator[Server]:
    """The peer with one model."""
    port = free_port()
    python, runner = environment(peer.folder), HOME / peer.folder / "runner.py"
    path = root / model / "1" / "model.onnx"
    with running([python, runner, path, str(port), str(workers)], port) as server:
        yield server


def starts(root: Path, ours: Start) -> Found:
    """Each peer alone with the tiny model: its start and its memory, against the agent's."""
    ratios: dict[str, report.Ratio] = {}
    found: dict[str, float] = {}
    for peer in PEERS:
        with serving(peer, root, "tiny", peer.workers) as server:
            theirs = alone(server, peer.form)
        found |= theirs.figures(peer.name)
        share = ours.memory.pss / theirs.memory.pss
        ratios[f"pss_vs_{peer.name}"] = report.Ratio.once(share, peer.pss_target)
        ratios[f"first_vs_{peer.name}"] = report.Ratio.once(ours.first_s / theirs.first_s)
    return ratios, found


def measure(root: Path, agent: Server, raws: dict[str, Raw], pairs: int) -> Found:
    """Every peer with both models, in turn with the agent."""
    ratios: dict[str, report.Ratio] = {}
    found: dict[str, float] = {}
    for peer in PEERS:
        plans = [("tiny", "tiny", peer.workers), ("cnn", "cnn", peer.workers)]
        if peer.workers:
            plans.append(("cnn2", "cnn", 2 * peer.workers))
        for ours, theirs, workers in plans:
            with serving(peer, root, theirs, workers) as server:
                values, more = against(peer, server, theirs, agent, ours, raws, pairs)
            target = peer.tiny_target if ours == "tiny" else None
            ratios[f"{ours}_c{CLIENTS}_vs_{peer.name}"] = report.Ratio.of(values, target)
            found |= more
    best = {"best_peer": PEERS, "best_isolated": [peer for peer in PEERS if peer.isolated]}
    for name, peers in best.items():
        least = min((ratios[f"cnn_c{CLIENTS}_vs_{one.name}"] for one in peers), key=_value)
        ratios[f"cnn_c{CLIENTS}_vs_{name}"] = report.Ratio(least.value, BEST_TARGET, least.spread)
    return ratios, found


def _value(ratio: report.Ratio) -> float:
    return ratio.value


def against(
    peer: Peer,
    server: Server,
    theirs: str,
    agent: Server,
    ours: str,
    raws: dict[str, Raw],
    pairs: int,
) -> tuple[list[float], dict[str, float]]:
    """The agent's model `ours` and the peer's model `theirs`: the ratio of each pair."""
    with ExitStack() as stack:
        sides = [
            Client(agent, ours, forms.OPEN_BINARY, raws[ours], stack),
            Client(server, theirs, peer.form, raws[theirs], stack),
        ]
        server.first(sides[1].requests[0])
        for side in sides:
            side.run(CLIENTS, WARM_S)
        volleys = [[side.run(CLIENTS, SIDE_S) for side in sides] for _ in range(pairs)]
    name = f"{ours}_c{CLIENTS}_{peer.name}"
    found = latencies(name, [volley for _, volley in volleys])
    return [mine.rate / other.rate for mine, other in volleys], found
