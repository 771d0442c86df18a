"""What `/metrics` says of the accelerators; what a board does not say has no line."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.health.accelerators import AcceleratorsShown, Known
from agent.health.power.power import PowerShown

# name, meaning, and what of an accelerator is shown by it
GAUGES: tuple[tuple[str, str, Callable[[Known], float | None]], ...] = (
    ("memory_used_bytes", "Of its memory, in use.", lambda one: one.memory_used_bytes),
    ("memory_bytes", "Of its memory, all.", lambda one: one.memory_total_bytes),
    ("temperature_celsius", "What it has.", lambda one: one.temperature_c),
    ("temperature_max_celsius", "Where it slows down.", lambda one: one.temperature_c_max),
    ("utilization_ratio", "Part of the time it computed.", lambda one: one.utilisation_ratio),
    ("clock_hertz", "Clock of its compute units.", lambda one: one.clock_hz),
    ("clock_max_hertz", "The highest that it may have.", lambda one: one.clock_hz_max),
    ("power_watts", "What it takes; on a Jetson, the module.", lambda one: one.power_w),
)
LABELLED: tuple[tuple[str, str, str, Callable[[Known], Iterable[tuple[str, float]]]], ...] = (
    ("rail_watts", "Of a measured rail.", "rail", lambda one: one.rails_w.items()),
    (
        *("throttled", "1 for each reason why its clocks are lower than they could be.", "reason"),
        lambda one: ((reason, 1) for reason in one.throttled or ()),
    ),
)


class PowerMetrics:
    """Which power profile is in force, and what it is judged by."""

    def __init__(self, shown: Callable[[], PowerShown]) -> None:
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        """Every family; what the board does not say has no line."""
        shown = self._shown()
        profile = GaugeMetricFamily(
            "holdfast_power_profile", "1 for the profile in force.", labels=["profile"]
        )
        if shown.profile is not None:
            profile.add_metric([shown.profile], 1)
        yield profile
        hottest = GaugeMetricFamily("holdfast_hottest_celsius", "Of accelerators and CPU.")
        if shown.hottest_c is not None:
            hottest.add_metric([], shown.hottest_c)
        yield hottest
        left = GaugeMetricFamily("holdfast_battery_left_ratio", "1 while it is not discharged.")
        if shown.battery_left_ratio is not None:
            left.add_metric([], shown.battery_left_ratio)
        yield left


class AcceleratorMetrics:
    """Collects when somebody asks, from the last reading."""

    def __init__(self, shown: Callable[[], AcceleratorsShown]) -> None:
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type; none where there is nothing to read."""
        found = self._shown()
        if found.backend == "none":
            return
        present = GaugeMetricFamily(
            "holdfast_accelerator_present",
            "1 while it is there.",
            labels=["accelerator", "backend", "name"],
        )
        for one in found.accelerators:
            present.add_metric([one.id, found.backend, one.name], int(one.present))
        yield present
        age = GaugeMetricFamily(
            "holdfast_accelerator_reading_age_seconds", "Running time since the last reading."
        )
        if found.age_s is not None:
            age.add_metric([], found.age_s)
        yield age
        yield from _gauges(found.accelerators)
        yield from _counters(found.accelerators)


def _gauges(accelerators: list[Known]) -> Iterator[Metric]:
    for name, meaning, value in GAUGES:
        family = GaugeMetricFamily(f"holdfast_accelerator_{name}", meaning, labels=["accelerator"])
        for one in accelerators:
            if (known := value(one)) is not None:
                family.add_metric([one.id], known)
        yield family
    for name, meaning, label, values in LABELLED:
        labels = ["accelerator", label]
        family = GaugeMetricFamily(f"holdfast_accelerator_{name}", meaning, labels=labels)
        for one in accelerators:
            for said, known in values(one):
                family.add_metric([one.id, said], known)
        yield family


def _counters(accelerators: list[Known]) -> Iterator[Metric]:
    energy = CounterMetricFamily(
        "holdfast_accelerator_energy_joules",
        "What it took since the agent began.",
        labels=["accelerator"],
    )
    ecc = CounterMetricFamily(
        "holdfast_accelerator_ecc_errors",
        "Errors of its memory since its driver was loaded.",
        labels=["accelerator", "kind"],
    )
    xids = CounterMetricFamily(
        "holdfast_accelerator_xid_errors",
        "What NVIDIA's driver told of since the agent began.",
        labels=["accelerator", "xid"],
    )
    for one in accelerators:
        if one.energy_taken_j is not None:
            energy.add_metric([one.id], one.energy_taken_j)
        kinds = (
            ("corrected", one.ecc_corrected_errors),
            ("uncorrected", one.ecc_uncorrected_errors),
        )
        for kind, count in kinds:
            if count is not None:
                ecc.add_metric([one.id, kind], count)
        for xid, count in one.xid_counts.items():
            xids.add_metric([one.id, xid], count)
    yield from (energy, ecc, xids)
