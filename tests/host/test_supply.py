"""Batteries and thermal zones as the kernel shows them."""

from pathlib import Path

import pytest

from agent.host.supply import battery_left, cpu_c
from tests.host.supplied import battery, zone


def test_a_machine_without_either(tmp_path: Path) -> None:
    assert (battery_left(tmp_path), cpu_c(tmp_path)) == (None, None)


def test_the_emptiest_that_is_discharged_counts(tmp_path: Path) -> None:
    battery(tmp_path, "Full", 100)
    assert battery_left(tmp_path) == 1.0
    battery(tmp_path, "Discharging", 40, "BAT1")
    battery(tmp_path, "Discharging", 70, "ups", type="UPS")
    assert battery_left(tmp_path) == 0.4
    battery(tmp_path, "Charging", 40, "BAT1")
    assert battery_left(tmp_path) == 0.7


def test_mains_and_a_mouse_are_no_battery(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging", 3, "hid-mouse", scope="Device")
    battery(tmp_path, "Unknown", 0, "AC", type="Mains")
    assert battery_left(tmp_path) is None


@pytest.mark.parametrize("kind", ["x86_pkg_temp", "cpu-thermal", "CPU-therm", "soc0-thermal"])
def test_the_hottest_zone_of_the_cpu_counts(tmp_path: Path, kind: str) -> None:
    zone(tmp_path, kind, 71.5)
    zone(tmp_path, "cpu-thermal", 60.0, 1)
    zone(tmp_path, "PMIC-Die", 100.0, 2)
    zone(tmp_path, "cpu-thermal", -256.0, 3)
    assert cpu_c(tmp_path) == 71.5
