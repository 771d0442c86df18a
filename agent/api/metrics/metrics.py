"""`/metrics`: what the device knows of itself, for Prometheus.

Limits  : STREAMS_MAX streams get lines of their own; how many are left out is a metric too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from operator import itemgetter
from typing import TypeVar

from msgspec import Struct
from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from agent import VERSION
from agent.api.metrics import commands, jobs
from agent.errors import StoreError
from agent.health.conditions import Condition, Conditions
from agent.health.flash import Flash
from agent.health.status import Status
from agent.records import Balance
from agent.shown import Sync
from agent.store.latency import BOUNDS_S, Commits
from agent.store.store import Store
from agent.store.wear import Payload

T = TypeVar("T")
STREAMS_MAX = 200


class Held(Struct, frozen=True):
    """What only the store's thread can tell."""

    used_bytes: int
    ledger: dict[str, Balance]
    payload: dict[str, Payload]
    jobs: jobs.Held
    commands: commands.Held


class Snapshot(Struct, frozen=True):
    """All that is shown, of one moment; `held` is None while the store cannot be read."""

    uptime_s: float
    conditions: list[Condition]
    commits: Commits
    bytes_max: int
    written_bytes: dict[str, int]
    held: Held | None
    link: Sync


class Metrics:
    """Asks the parts; waits for the store's thread, and touches no disk itself."""

    def __init__(
        self,
        status: Status,
        conditions: Conditions,
        store: Store,
        flash: Flash,
        link: Callable[[], Sync],
        *more: Callable[[], Iterable[Metric]],
    ) -> None:
        """`link` is the link's state as it was seen last, `more` are those of the files beside.

        None of them asks anybody.
        """
        self._more = more
        self._link = link
        self._status = status
        self._conditions = conditions
        self._store = store
        self._flash = flash

    async def text(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics, and their media type: Prometheus' text format, or OpenMetrics where an
        `Accept` header asks for that."""
        encode, kind = choose_encoder(accept)
        return encode(Collector(await self._snapshot(), *self._more)), kind

    async def _snapshot(self) -> Snapshot:
        held = await self._held()
        return Snapshot(
            self._status.uptime_s,
            self._conditions.all(),
            self._store.commits,
            self._store.bytes_max,
            self._flash.written_bytes(),
            held,
            self._link(),
        )

    async def _held(self) -> Held | None:
        try:
            return Held(
                await self._store.used_bytes(),
                await self._store.ledger.balances(),
                await self._store.wear.payload(),
                await jobs.held(self._store.jobs),
                await commands.held(self._store.journal),
            )
        except StoreError:  # a condition says so, and here the conditions must still be seen
            return None


class Collector:
    """A snapshot as families of metrics, as prometheus_client wants them."""

    def __init__(self, snapshot: Snapshot, *more: Callable[[], Iterable[Metric]]) -> None:
        self._snapshot = snapshot
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        found = self._snapshot
        yield _build()
        yield gauge("holdfast_uptime_seconds", "Since the agent began.", found.uptime_s)
        yield _conditions(found.conditions)
        yield HistogramMetricFamily(
            "holdfast_store_commit_seconds",
            "Transactions that changed the store, from their begin until they were durable.",
            buckets=list(zip((*map(str, BOUNDS_S), "+Inf"), found.commits.cumulative, strict=True)),
            sum_value=found.commits.sum_s,
        )
        yield gauge("holdfast_store_bytes_max", "What store.bytes_max allows.", found.bytes_max)
        yield counter(
            "holdfast_store_written_bytes",
            "Written to disk since the agent began, by the process and by all on its device.",
            ["source"],
            [([source], size) for source, size in found.written_bytes.items()],
        )
        yield from _link(found.link)
        for collect in self._more:
            yield from collect()
        if found.held:
            yield gauge(
                "holdfast_store_used_bytes", "Pages in use in the store.", found.held.used_bytes
            )
            yield from _payload(found.held.payload, found.held.ledger)
            yield from _ledger(found.held.ledger)
            yield from jobs.families(found.held.jobs)
            yield from commands.families(found.held.commands)


def _build() -> Metric:
    family = GaugeMetricFamily("holdfast_build_info", "1: what runs.", labels=["version"])
    family.add_metric([VERSION], 1)
    return family


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, meaning, value=value)


def counter(
    name: str, meaning: str, labels: list[str], rows: Iterable[tuple[list[str], float]]
) -> Metric:
    """A counter with labels; the format adds `_total` to its name."""
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _conditions(held: list[Condition]) -> Metric:
    family = GaugeMetricFamily(
        "holdfast_condition", "1 while it holds.", labels=["name", "subject", "severity"]
    )
    for one in held:
        family.add_metric([one.name, one.subject, one.severity], 1)
    return family


def _link(state: Sync) -> Iterator[Metric]:
    """What is not known, or not configured, has no value."""
    yield gauge("holdfast_link_connected", "1 while there is a link.", state["connected"])
    yield gauge("holdfast_link_paused", "1 while an operator has it paused.", state["paused"])
    yield CounterMetricFamily(
        "holdfast_link_sent_bytes",
        "Sent since the agent began, with what each message adds to its payload.",
        value=state["sent_bytes"],
    )
    yield CounterMetricFamily(
        "holdfast_link_acknowledged_records",
        "Records that the far side took since the agent began.",
        value=state["acknowledged_records"],
    )
    if backlog := state["backlog"]:
        yield gauge("holdfast_link_backlog_records", "Records to be sent.", backlog["records"])
        yield gauge("holdfast_link_backlog_bytes", "Their bodies and blobs.", backlog["bytes"])
    if quota := state["quota"]:
        yield gauge(
            "holdfast_link_quota_bytes", "What may be sent in a day.", quota["bytes_per_day"]
        )
        yield gauge(
            "holdfast_link_quota_used_bytes", "Sent in this day of it.", quota["used_bytes"]
        )


def _payload(streams: dict[str, Payload], ledger: Collection[str]) -> Iterator[Metric]:
    """Of all that the file counted; lines are for the streams of the `ledger`."""
    taken = sum(one.taken_bytes for one in streams.values())
    yield CounterMetricFamily(
        "holdfast_store_payload_bytes", "Bodies and blobs that producers brought.", value=taken
    )
    held = GaugeMetricFamily(
        "holdfast_outbox_bytes", "Bodies and blobs that are held.", labels=["stream"]
    )
    for stream, one in _some({name: one for name, one in streams.items() if name in ledger}):
        held.add_metric([stream], one.held_bytes)
    yield held


def _ledger(balances: dict[str, Balance]) -> Iterator[Metric]:
    """The loss ledger: produced = delivered + held + dropped. Here alone its shape counts."""
    rows = list(_some(balances))
    yield gauge(
        "holdfast_ledger_streams_left_out",
        "Streams without lines of their own here; status has them.",
        len(balances) - len(rows),
    )
    yield counter(
        "holdfast_ledger_records",
        "Records ever produced and delivered.",
        ["stream", "state"],
        [
            ([stream, state], count)
            for stream, one in rows
            for state, count in (("produced", one.produced), ("delivered", one.delivered))
        ],
    )
    yield counter(
        "holdfast_ledger_dropped_records",
        "Records ever given up.",
        ["stream", "reason"],
        [
            ([stream, reason], count)
            for stream, one in rows
            for reason, count in one.dropped.items()
        ],
    )
    held = GaugeMetricFamily("holdfast_ledger_held_records", "Records held.", labels=["stream"])
    for stream, one in rows:
        held.add_metric([stream], one.held)
    yield held


def _some(streams: dict[str, T]) -> Iterable[tuple[str, T]]:
    """STREAMS_MAX of them at most, by name."""
    return islice(sorted(streams.items(), key=itemgetter(0)), STREAMS_MAX)
