"""What `/metrics` says of the doors.

Limits  : lines grow with the routes that are served and the statuses they answer with, with nothing
          that a caller says.
"""

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from agent.api.entry.traffic import WINDOW_S, Gate, Traffic
from agent.api.metrics.models import buckets

GATES: list[tuple[str, str, Callable[[Gate], int]]] = [
    ("holdfast_http_connections", "Connections that are open.", lambda one: one.connected),
    ("holdfast_http_places", "Connections that may be open at once.", lambda one: one.places),
]


class DoorMetrics:
    """Looks at the counts when a scraper asks."""

    def __init__(self, traffic: Traffic, active_requests: Callable[[], int]) -> None:
        self._traffic = traffic
        self._active_requests = active_requests

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        traffic = self._traffic
        yield from _requests(traffic)
        yield GaugeMetricFamily(
            "holdfast_http_active_requests",
            "Requests under way, open streams among them.",
            value=self._active_requests(),
        )
        yield GaugeMetricFamily(
            "holdfast_http_requests_per_second",
            f"Requests that were answered in a second, the mean of the last {WINDOW_S} seconds.",
            value=traffic.per_second(),
        )
        yield from _gates(traffic)
        streams = GaugeMetricFamily(
            "holdfast_http_streams",
            "Answers without an end that are open: server-sent events, WebSockets.",
            labels=["kind"],
        )
        for kind, number in traffic.streams.items():
            streams.add_metric([kind], number)
        yield streams
        refused = CounterMetricFamily(
            "holdfast_http_refused",
            "Connections without a place; requests without a token or scope (auth), to another "
            "name than this agent's, above a rate.",
            labels=["reason"],
        )
        for reason, number in traffic.refused().items():
            refused.add_metric([reason], number)
        yield refused


def _requests(traffic: Traffic) -> Iterator[Metric]:
    rows = list(traffic.tallies.items())
    ended = CounterMetricFamily(
        "holdfast_http_requests",
        "Requests that ended, by the status of their answer; 499: nobody waited for it.",
        labels=["route", "method", "code"],
    )
    took = HistogramMetricFamily(
        "holdfast_http_request_duration_seconds",
        "From a request's header until its answer was made; streams are not counted.",
        labels=["route", "method"],
    )
    for (route, method), tally in rows:
        for status, number in tally.statuses.items():
            ended.add_metric([route, method, str(status)], number)
        took.add_metric([route, method], *buckets(tally.seconds))
    yield from (ended, took)


def _gates(traffic: Traffic) -> Iterator[Metric]:
    for name, meaning, value in GATES:
        family = GaugeMetricFamily(name, meaning, labels=["door"])
        for door, gate in traffic.gates.items():
            family.add_metric([door], value(gate))
        yield family
    received = CounterMetricFamily(
        "holdfast_http_received_bytes", "Read from connections.", labels=["door"]
    )
    for door, gate in traffic.gates.items():
        received.add_metric([door], gate.received_bytes)
    yield received
