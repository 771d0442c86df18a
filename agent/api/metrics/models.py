"""What `/metrics` says of domains and their models.

Limits  : lines grow with the domains and models of the configuration, with nothing that a caller
          says.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from math import nan
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from agent.inference.breaker import State
from agent.inference.cache import Cache
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain
from agent.inference.domains.figures import Histogram, ModelFigures
from agent.inference.sequences import Sequences

STATES: tuple[State, ...] = ("closed", "half-open", "open")
COUNTERS: list[tuple[str, str, Callable[[ModelFigures], int]]] = [
    ("holdfast_cache_hits", "Calls answered from the cache.", lambda one: one.cache_hits),
    (
        "holdfast_cache_misses",
        "Calls that the cache had no answer to.",
        lambda one: one.cache_misses,
    ),
]
HISTOGRAMS: list[tuple[str, str, Callable[[ModelFigures], Histogram]]] = [
    (
        "holdfast_model_queue_seconds",
        "From a call's arrival until it was sent to a process.",
        lambda one: one.queue_s,
    ),
    (
        "holdfast_model_compute_seconds",
        "What a batch took in its process.",
        lambda one: one.compute_s,
    ),
    ("holdfast_model_batch_calls", "Calls that went together.", lambda one: one.batch_calls),
]


class Domains(Protocol):
    """Where the models are."""

    def all(self) -> list[Domain]:
        """Each domain."""


class Scheduler(Protocol):
    """Who asks them."""

    cache: Cache
    sequences: Sequences

    def breaker_state(self, model: Model) -> State:
        """What the breaker of a version does now."""


class ModelMetrics:
    """Looks at the parts when a scraper asks."""

    def __init__(self, domains: Domains, scheduler: Scheduler) -> None:
        self._domains = domains
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        domains = self._domains.all()
        yield from _domains(domains)
        yield from _versions(domains, self._scheduler)
        yield from _fallen(domains)
        yield from _calls(domains)
        yield from _kept(self._scheduler)


def _domains(domains: list[Domain]) -> Iterator[Metric]:
    def gauge(name: str, meaning: str, value: Callable[[Domain], float]) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=["domain"])
        for one in domains:
            family.add_metric([one.name], value(one))
        return family

    yield gauge(
        "holdfast_domain_ready", "1 while it answers calls.", lambda one: one.ready.is_set()
    )
    yield gauge(
        "holdfast_domain_quarantined",
        "1 while it rests, because it died again and again.",
        lambda one: one.quarantined,
    )
    yield gauge("holdfast_domain_waiting", "Calls in its queue.", lambda one: one.waiting)
    instances = GaugeMetricFamily(
        "holdfast_domain_instances",
        "Processes: those that get calls, those that stand by for them, those not ready.",
        labels=["domain", "state"],
    )
    restarts = CounterMetricFamily(
        "holdfast_domain_restarts", "Processes started in place of others.", labels=["domain"]
    )
    gpu = CounterMetricFamily(
        "holdfast_domain_gpu_seconds",
        "Time of the GPU in its turns; what two use at once is halved.",
        labels=["domain"],
    )
    for one in domains:
        for state, number in one.processes.items():
            instances.add_metric([one.name, state], number)
        restarts.add_metric([one.name], one.restarts)
        gpu.add_metric([one.name], one.gpu_s)
    yield from (instances, restarts, gpu)


def _versions(domains: list[Domain], scheduler: Scheduler) -> Iterator[Metric]:
    """Of the versions that serve."""
    labels = ["domain", "model"]
    served = GaugeMetricFamily(
        "holdfast_model_info",
        "1: the version that serves, and the execution provider it runs on.",
        labels=[*labels, "version", "sha256", "ep"],
    )
    load = GaugeMetricFamily(
        "holdfast_model_load_seconds", "What loading it took, without warm-up.", labels=labels
    )
    breaker = GaugeMetricFamily(
        "holdfast_model_breaker_state",
        "1 for the state that its circuit breaker is in.",
        labels=[*labels, "state"],
    )
    for domain in domains:
        for name, model in domain.models.items():
            state = scheduler.breaker_state(model)
            for one in STATES:
                breaker.add_metric([domain.name, name, one], one == state)
            if loaded := domain.loaded(name):
                version = str(model.manifest.version)
                served.add_metric([domain.name, name, version, model.sha256, loaded.ep], 1)
                load.add_metric([domain.name, name], loaded.load_s)
    yield from (served, load, breaker)


def _fallen(domains: list[Domain]) -> Iterator[Metric]:
    """Of the models that their accelerator failed."""
    fallen = GaugeMetricFamily(
        "holdfast_model_fallen",
        "1 while it runs on the CPU for a fault of its accelerator.",
        labels=["domain", "model", "fault"],
    )
    cost = GaugeMetricFamily(
        "holdfast_model_cpu_cost_ratio",
        "How many times as long a row of it takes on the CPU as it did on its accelerator; "
        "NaN: not measured.",
        labels=["domain", "model"],
    )
    falls = CounterMetricFamily(
        "holdfast_domain_falls",
        "Models that went to the CPU, by the class of the accelerator's fault.",
        labels=["domain", "fault"],
    )
    probes = CounterMetricFamily(
        "holdfast_domain_probes",
        "Tries of the accelerator before a return to it: passed, failed.",
        labels=["domain", "outcome"],
    )
    for domain in domains:
        for name, fall in domain.falls.items():
            fallen.add_metric([domain.name, name, fall.fault], 1)
            cost.add_metric([domain.name, name], domain.cost_ratio(name) or nan)
        for fault, number in domain.ladder.count.items():
            falls.add_metric([domain.name, fault], number)
        for outcome, number in domain.ladder.probes.items():
            probes.add_metric([domain.name, outcome], number)
    yield from (fallen, cost, falls, probes)


def _calls(domains: list[Domain]) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "holdfast_model_calls",
        "Calls by what became of them: ok; refused: not in the model's form; failed: the model "
        "erred; late; lost: with their process; busy: not accepted; withdrawn by their caller.",
        labels=["domain", "model", "outcome"],
    )
    rows = [
        (domain.name, name, domain.figures.models[name])
        for domain in domains
        for name in domain.settings.models
        if name in domain.figures.models
    ]
    for domain, name, figures in rows:
        for outcome, number in figures.outcomes.items():
            ended.add_metric([domain, name, outcome], number)
    yield ended
    for name, meaning, count in COUNTERS:
        counter = CounterMetricFamily(name, meaning, labels=["domain", "model"])
        for domain, model, figures in rows:
            counter.add_metric([domain, model], count(figures))
        yield counter
    for name, meaning, histogram in HISTOGRAMS:
        family = HistogramMetricFamily(name, meaning, labels=["domain", "model"])
        for domain, model, figures in rows:
            family.add_metric([domain, model], *buckets(histogram(figures)))
        yield family


def buckets(found: Histogram) -> tuple[list[tuple[str, float]], float]:
    """As Prometheus has them: each with all that are below it; and the sum."""
    bounds = (*map(str, found.bounds), "+Inf")
    return list(zip(bounds, map(float, accumulate(found.counts)), strict=True)), found.sum


def _kept(scheduler: Scheduler) -> Iterator[Metric]:
    """What is remembered between calls."""
    cache = scheduler.cache
    yield GaugeMetricFamily("holdfast_cache_bytes", "What is in it.", value=cache.used_bytes)
    yield GaugeMetricFamily(
        "holdfast_sequences",
        "Sequences of calls whose state is kept.",
        value=len(scheduler.sequences),
    )
