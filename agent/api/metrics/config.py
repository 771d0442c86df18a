"""What `/metrics` says of the configuration's versions."""

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from agent.versions.shown import ConfigShown


class ConfigMetrics:
    """Collects when somebody asks."""

    def __init__(self, shown: Callable[[], ConfigShown]) -> None:
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        found = self._shown()
        for name, meaning, number in (
            ("live", "The version that was chosen last.", found.live),
            ("confirmed", "The version that was confirmed last.", found.confirmed),
            ("in_force", "The version that the agent runs on; 0: the file itself.", found.in_force),
        ):
            yield GaugeMetricFamily(f"holdfast_config_version_{name}", meaning, value=number)
        trial = "1 while the live version is on trial."
        yield GaugeMetricFamily("holdfast_config_on_trial", trial, value=int(bool(found.trial)))
