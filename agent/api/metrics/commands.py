"""What `/metrics` says of commands and the twin; the counters go on after a restart."""

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from msgspec import Struct
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.protocol.commands import Reason
from agent.protocol.twin import Reported, Standing
from agent.store.journal import Journal
from agent.store.journalrows import ENDED


class Held(Struct, frozen=True):
    """What the store says of its commands."""

    counts: dict[str, int]
    open: int
    untold: int


async def held(journal: Journal) -> Held:
    """Of now. Raises StoreError."""
    return Held(await journal.counts(), *await journal.waiting())


def families(found: Held) -> Iterator[Metric]:
    """Every family, with what it means and its type."""
    since = found.counts
    yield CounterMetricFamily(
        "holdfast_commands_accepted",
        "Commands accepted since the store's file began.",
        value=since.get("accepted", 0),
    )
    ended = CounterMetricFamily(
        "holdfast_commands_ended",
        "Commands that ended since the store's file began.",
        labels=["outcome"],
    )
    for outcome in ENDED:
        ended.add_metric([outcome], since.get(outcome, 0))
    yield ended
    refused = CounterMetricFamily(
        "holdfast_commands_refused",
        "Commands that were not accepted since the store's file began.",
        labels=["reason"],
    )
    for reason in filter(None, get_args(Reason)):
        refused.add_metric([reason], since.get(f"refused:{reason}", 0))
    yield refused
    yield GaugeMetricFamily(
        "holdfast_commands_open", "Commands that wait or run.", value=found.open
    )
    yield GaugeMetricFamily(
        "holdfast_commands_untold",
        "Results, refusals too, that nobody at the link has.",
        value=found.untold,
    )


def twin(found: Reported) -> Iterator[Metric]:
    """How the device stands to what the cloud wants."""
    yield GaugeMetricFamily(
        "holdfast_twin_desired_version",
        "The version of what the cloud wants; 0 before the first.",
        value=found.desired_version,
    )
    standing = GaugeMetricFamily(
        "holdfast_twin_aspects", "Aspects of which something is wanted.", labels=["standing"]
    )
    counts = Counter(one.standing for one in found.state.values())
    for name in get_args(Standing):
        standing.add_metric([name], counts[name])
    yield standing
