"""What `/metrics` says of the watchdog."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.health.starts.starts import Starts
from agent.health.watchdog.device_seen import DeviceSeen
from agent.health.watchdog.watchdog import Watchdog


class WatchdogMetrics:
    """Collects when somebody asks."""

    def __init__(self, watchdog: Watchdog, starts: Starts, device: DeviceSeen) -> None:
        self._watchdog = watchdog
        self._starts = starts
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        fed = "1 while whoever would reset this agent is fed: every part moves, or is seen to."
        yield GaugeMetricFamily("holdfast_watchdog_fed", fed, value=int(self._watchdog.fed))
        still = GaugeMetricFamily(
            "holdfast_part_still_seconds",
            "Running time since a part that owes work made progress.",
            labels=["part"],
        )
        for one in self._watchdog.seen():
            still.add_metric([one.part], one.still_s)
        yield still
        remedies = CounterMetricFamily(
            "holdfast_watchdog_remedies",
            "Remedies begun since the agent began.",
            labels=["part", "remedy"],
        )
        for (part, remedy), count in self._watchdog.begun().items():
            remedies.add_metric([part, remedy], count)
        yield remedies
        yield from self._begun()
        yield from self._hardware()

    def _begun(self) -> Iterator[Metric]:
        begun = CounterMetricFamily(
            "holdfast_starts", "Starts of the agent that are known, by cause.", labels=["cause"]
        )
        for cause, count in self._starts.counts.items():
            begun.add_metric([cause], count)
        yield begun
        left = "Resets of the machine that there may still be within a day of running."
        yield GaugeMetricFamily("holdfast_resets_left", left, value=self._starts.resets_left)
        safe = "1 in safe mode: no model runs."
        yield GaugeMetricFamily("holdfast_safe_mode", safe, value=int(bool(self._starts.safe)))

    def _hardware(self) -> Iterator[Metric]:
        """As it was seen last: at the start, every ten minutes, and when somebody asks for it."""
        found = self._device.last.found
        armed = found.armed if found else None
        yield GaugeMetricFamily(
            "holdfast_hardware_watchdog_armed",
            "1 while somebody has armed the machine's own watchdog, and feeds it.",
            value=None if armed is None else int(armed),
        )
        yield GaugeMetricFamily(
            "holdfast_hardware_watchdog_timeout_seconds",
            "How long the machine's own watchdog waits to be fed before it resets the machine.",
            value=found.timeout_s if found else None,
        )
