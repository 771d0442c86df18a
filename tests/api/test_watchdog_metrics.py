"""What `/metrics` says of the machine's own watchdog."""

from pathlib import Path

from agent.api.metrics.watchdog import WatchdogMetrics
from tests.health.starts.test_starts import Machine as Started
from tests.health.watchdog.test_device_seen import Machine
from tests.health.watchdog.test_watchdog import bench


async def test_the_machines_own_watchdog_is_told_as_far_as_its_driver_does(tmp_path: Path) -> None:
    machine, begun = Machine(tmp_path / "board"), Started(tmp_path).begin()
    async with bench(tmp_path) as made:
        metrics = WatchdogMetrics(made.watchdog, begun, machine.seen)

        async def told() -> dict[str, float]:
            await machine.seen.now()
            samples = [sample for metric in metrics.collect() for sample in metric.samples]
            return {one.name: one.value for one in samples if "hardware" in one.name}

        assert await told() == {}, "it has none"
        machine.folder.mkdir(parents=True)
        assert await told() == {}, "its driver does not say"
        armed, timeout = (
            f"holdfast_hardware_watchdog_{name}" for name in ("armed", "timeout_seconds")
        )
        machine.has("inactive")
        assert await told() == {armed: 0.0, timeout: 60.0}
        machine.has("active")
        assert await told() == {armed: 1.0, timeout: 60.0}
