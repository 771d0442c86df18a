"""What `/metrics` says of the durable jobs; their counters go on after a restart of the agent."""

from collections.abc import Iterator

from msgspec import Struct
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.store.jobrows import ENDED, State
from agent.store.jobs import Counts, Jobs

WAITS: tuple[State, ...] = ("queued", "running")
RUNS: tuple[State, ...] = ("running",)
REMOVED = ("taken", "expired")


class Held(Struct, frozen=True):
    """What the store says of its jobs."""

    counts: Counts
    oldest_s: float  # the age of the oldest that has not ended; 0: there is none
    attempts: int  # of the chunks at hand


async def held(jobs: Jobs) -> Held:
    """Of now. Raises StoreError."""
    first = await jobs.page(1, 1, WAITS)
    running = await jobs.page(1, states=RUNS)
    attempts = sum(one.attempts for one in running)
    return Held(await jobs.counts(), first[0].age_s if first else 0.0, attempts)


def families(found: Held) -> Iterator[Metric]:
    """Every family, with what it means and its type."""
    states = GaugeMetricFamily("holdfast_jobs", "Jobs that are kept.", labels=["state"])
    for state, number in found.counts.now.items():
        states.add_metric([state], number)
    yield states
    yield GaugeMetricFamily("holdfast_jobs_bytes", "What they hold.", value=found.counts.bytes)
    yield GaugeMetricFamily(
        "holdfast_jobs_oldest_age_seconds",
        "Running time since the oldest that has not ended was submitted; 0 if there is none.",
        value=found.oldest_s,
    )
    yield GaugeMetricFamily(
        "holdfast_jobs_attempts",
        "How often the chunks at hand were begun: above the number of running jobs, some failed.",
        value=found.attempts,
    )
    since = found.counts.since
    yield CounterMetricFamily(
        "holdfast_jobs_submitted",
        "Jobs accepted since the store's file began.",
        value=since.get("submitted", 0),
    )
    yield _counted(
        "ended", "Jobs that ended since the store's file began.", "outcome", ENDED, since
    )
    yield _counted(
        "removed",
        "Ended jobs removed since the store's file began: taken, or kept for long enough.",
        "reason",
        REMOVED,
        since,
    )


def _counted(
    what: str, meaning: str, label: str, events: tuple[str, ...], since: dict[str, int]
) -> Metric:
    family = CounterMetricFamily(f"holdfast_jobs_{what}", meaning, labels=[label])
    for event in events:
        family.add_metric([event], since.get(event, 0))
    return family
