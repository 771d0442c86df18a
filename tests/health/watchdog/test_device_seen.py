"""What is said of a machine's own watchdog by what its driver shows, and that nobody opens it."""

import asyncio
import threading
from pathlib import Path

import pytest

from agent.health.conditions import Conditions
from agent.health.watchdog import device_seen
from agent.health.watchdog.device_seen import DeviceSeen, Owner
from agent.host.wdt import HardwareWatchdog, WatchdogFound
from tests.health.watchdog.test_watchdog import Still


class Machine:
    """Its sysfs is a folder. There is no device to open: who tried would fail."""

    def __init__(self, folder: Path, owner: Owner = "systemd", *, installed: bool = True) -> None:
        self.folder = folder / "watchdog0"
        self.conditions = Conditions(Still())
        found = HardwareWatchdog(folder / "none" / "watchdog0", folder).found
        self.seen = DeviceSeen(owner, "/dev/watchdog0", found, self.conditions, installed=installed)

    def has(self, state: str) -> None:
        """A watchdog, in this state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {"identity": "NVIDIA Tegra186 WDT", "timeout": "60", "nowayout": "0"}
        for name, text in {**told, "bootstatus": "0", "state": state}.items():
            (self.folder / name).write_text(f"{text}\n")

    async def held(self) -> list[tuple[str, str]]:
        await self.seen.now()
        return [(one.name, one.severity) for one in self.conditions.all()]


@pytest.mark.parametrize(("installed", "severity"), [(True, "warning"), (False, "note")])
async def test_one_that_nobody_has_armed_is_said_until_somebody_does(
    tmp_path: Path, *, installed: bool, severity: str
) -> None:
    machine = Machine(tmp_path, installed=installed)
    machine.has("inactive")
    assert await machine.held() == [("watchdog_unarmed", severity)]
    (condition,) = machine.conditions.all()
    assert "NVIDIA Tegra186 WDT" in condition.cause
    assert "RuntimeWatchdogSec=60" in condition.remedy
    machine.has("active")
    assert await machine.held() == []
    shown = await machine.seen.now()
    found = WatchdogFound(
        "NVIDIA Tegra186 WDT", True, 60, None, None, None, nowayout=False, causes=None
    )
    assert shown == device_seen.HardwareShown("systemd", "/dev/watchdog0", found)


async def test_a_machine_that_has_none_lacks_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert await machine.held() == []
    assert machine.seen.last.found is None
    machine.folder.mkdir()  # a kernel without CONFIG_WATCHDOG_SYSFS
    assert await machine.held() == []
    assert machine.seen.last.found


@pytest.mark.parametrize("owner", ["agent", "none"])
async def test_what_is_not_systemds_is_shown_and_not_judged(tmp_path: Path, owner: Owner) -> None:
    machine = Machine(tmp_path, owner)
    machine.has("inactive")
    assert await machine.held() == []
    assert machine.seen.last.found


async def test_a_driver_that_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, gate, reads = Machine(tmp_path), threading.Event(), list[int]()

    def read() -> None:
        reads.append(1)
        gate.wait()

    machine.seen._read = read
    monkeypatch.setattr(device_seen, "READ_S", 0.01)
    try:
        for _ in range(3):
            assert (await machine.seen.now()).found is None
        assert len(reads) == 1, "no more threads for it"
    finally:
        gate.set()
    assert machine.seen._reading
    async with asyncio.timeout(30):
        await machine.seen._reading
