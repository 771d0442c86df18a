"""Models over HTTP: the agent's isolated domains against the same session without isolation.

The agent is the real one, `holdfast run`, asked at `POST /v2/models/NAME/infer` with binary bodies
by the clients of `load.py`: c8 is eight at a time. The references (`reference.py`) are a plain
aiohttp server under uvloop that calls the session in its handler, and a bare loop without a server,
each on one thread. Nothing is pinned: servers, domains and load share the machine. In each pair the
sides run in turn, on the same sixteen random inputs, and all their numbers are checked.

tiny_c8_vs_inprocess, tiny_c1_vs_inprocess   the tiny model: what isolation costs, larger is better
cnn_c8_vs_raw                                a network of some milliseconds, one instance
cnn2_c8_vs_raw                               the same in two instances, against the one loop
*_vs_*                                       the rest is for information
pss_vs_110_mb                                memory, see below, smaller is better
first_vs_inprocess                           from the start to the first answer, smaller is better

`*_pss_mib` is the memory of a server and its children with the tiny model alone, after a volley,
while no other server runs; `*_anonymous_mib` what of it no file backs.

With --full the peers of serving_peers.py follow.
"""

import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from bench import forms, report, serving_peers
from bench.load import Volley
from bench.served import (
    CLIENTS,
    DOMAINS,
    SIDE_S,
    SIZES,
    WARM_S,
    Client,
    Raw,
    Start,
    agent,
    alone,
    inprocess,
    latencies,
    repository,
    requests,
    ring,
)
from bench.servers import Server

PAIRS, PAIRS_FULL = 9, 40
STARTS, STARTS_FULL = 3, 7
PSS_MIB_MAX = 110e6 / 2**20  # 110 MB


class Case(Struct, frozen=True):
    """One ratio: the agent's answers per second against the reference's; and what is asked for."""

    model: str
    clients: int
    reference: str
    target: float | None = None
    form: str = "binary"

    @property
    def key(self) -> str:
        """Its name in the report."""
        form = "" if self.form == "binary" else f"_{self.form}"
        return f"{self.model}{form}_c{self.clients}_vs_{self.reference}"


CASES = [
    Case("tiny", CLIENTS, "inprocess", 0.9),
    Case("tiny", 1, "inprocess", 0.6),
    Case("cnn", CLIENTS, "raw", 0.85),
    Case("cnn2", CLIENTS, "raw", 1.6),
    Case("cnn", 1, "raw"),
    Case("cnn", CLIENTS, "inprocess"),
    Case("tiny", CLIENTS, "inprocess", form="json"),
]
FORMS = {"binary": forms.OPEN_BINARY, "json": forms.OPEN_JSON}


def starts(root: Path, rounds: int) -> tuple[Start, dict[str, report.Ratio], dict[str, float]]:
    """The agent and the server without isolation, each alone, in turn; the agent's last start."""
    pairs = []
    for _ in range(rounds):
        with agent(root, "tiny") as server:
            ours = alone(server, forms.OPEN_BINARY)
        with inprocess(root) as server:
            pairs.append((ours, alone(server, forms.OPEN_BINARY)))
    sizes = [ours.memory.pss / PSS_MIB_MAX for ours, _ in pairs]
    ratios = {
        "pss_vs_110_mb": report.Ratio.of(sizes, 1.0),
        "first_vs_inprocess": report.Ratio.of([a.first_s / b.first_s for a, b in pairs]),
    }
    ours, theirs = pairs[-1]
    return ours, ratios, ours.figures("agent") | theirs.figures("inprocess")


def measured(
    case: Case, servers: dict[str, Server], raws: dict[str, Raw], pairs: int
) -> tuple[report.Ratio, dict[str, float]]:
    """One case: the agent and its reference in turn."""
    raw = raws[case.model]
    with ExitStack() as stack:

        def client(server: str, form: str) -> Callable[[], Volley]:
            made = Client(servers[server], case.model, FORMS[form], raw, stack)
            made.run(case.clients, WARM_S)
            return lambda: made.run(case.clients, SIDE_S)

        ours = client("agent", case.form)
        theirs = client("inprocess", "binary") if case.reference == "inprocess" else None
        volleys, rates = [], []
        for _ in range(pairs):
            volleys.append(ours())
            rates.append(theirs().rate if theirs else raw.rate(SIDE_S))
    each = [volley.rate / rate for volley, rate in zip(volleys, rates, strict=True)]
    name, _, _ = case.key.partition("_vs_")
    reference = {f"{name}_{case.reference}_per_s": statistics.median(rates)}
    return report.Ratio.of(each, case.target), latencies(name, volleys) | reference


def measure(*, full: bool) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """The starts, then the cases; `full`: longer, and the peers too."""
    pairs = PAIRS_FULL if full else PAIRS
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name, ExitStack() as stack:
        root = repository(Path(name))
        start, ratios, found = starts(root, STARTS_FULL if full else STARTS)
        if full:
            _add(ratios, found, serving_peers.starts(root, start))
        raws = {model: Raw(model, root, stack) for model in SIZES}
        served = stack.enter_context(agent(root, *DOMAINS))
        with inprocess(root) as reference:
            servers = {"agent": served, "inprocess": reference}
            for model in SIZES:
                for server in servers.values():
                    server.first(requests(model, forms.OPEN_BINARY, ring(model)[:1])[0])
            for case in CASES:
                ratios[case.key], more = measured(case, servers, raws, pairs)
                found |= more
        if full:
            _add(ratios, found, serving_peers.measure(root, served, raws, pairs))
    return ratios, found


def _add(
    ratios: dict[str, report.Ratio], found: dict[str, float], more: serving_peers.Found
) -> None:
    ratios |= more[0]
    found |= more[1]


def main() -> None:
    asked = report.options(__doc__).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that no server is left behind
    ratios, found = measure(full=asked.full)
    report.Report.of("serving", ratios, found).show(as_json=asked.json)


if __name__ == "__main__":
    main()
