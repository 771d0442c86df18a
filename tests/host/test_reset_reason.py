"""What a Jetson's power controller says, by the names that the kernel's driver gives it."""

from pathlib import Path

import pytest

from agent.host import reset_reason


def said(folder: Path, name: str) -> Path:
    """As the driver's folder has it: a link to the device, by its address."""
    device = folder / "devices" / "platform" / "bus@0" / "c360000.pmc"
    device.mkdir(parents=True)
    (device / "reset_reason").write_text(f"{name}\n")
    (device / "reset_level").write_text("L0\n")
    driver = folder / "drivers" / "tegra-pmc"
    driver.mkdir(parents=True)
    (driver / "c360000.pmc").symlink_to(device)
    (driver / "uevent").write_text("")
    return driver


@pytest.mark.parametrize(
    ("name", "causes"),
    [
        *((one, ("watchdog",)) for one in ("BCCPLEXWDT", "LCCPLEXWDT", "AOWDT", "FSI_R52C0WDT")),
        *((one, ("watchdog",)) for one in ("WATCHDOG", "TEGRA_WATCHDOG", "PMIC_WATCHDOG_POR")),
        *((one, ("overheat",)) for one in ("SENSOR", "AOTAG", "TEGRA_VFSENSOR", "FSI_THERM")),
        *((one, ("software",)) for one in ("MAINSWRST", "SWREST", "SW_MAIN")),
        ("TEGRA_SOFTWARE_RESET", ("software",)),
        *((one, ()) for one in ("SYS_RESET", "SYS_RESET_N")),
        *((one, None) for one in ("POWER_ON_RESET", "TEGRA_POWER_ON_RESET", "SC7", "HSM")),
        *((one, None) for one in ("(null)", "UNKNOWN", "")),
    ],
)
def test_what_a_name_says_for_sure(
    tmp_path: Path, name: str, causes: tuple[str, ...] | None
) -> None:
    assert reset_reason.causes(said(tmp_path, name)) == causes


def test_a_machine_without_one_says_nothing(tmp_path: Path) -> None:
    assert reset_reason.causes(tmp_path / "none") is None
    driver = said(tmp_path, "BCCPLEXWDT")
    (driver / "c360000.pmc" / "reset_reason").write_bytes(b"\xff")
    assert reset_reason.causes(driver) is None


def test_what_several_say_is_put_together() -> None:
    assert reset_reason.joined(None, None) is None
    assert reset_reason.joined(None, ()) == set()
    assert reset_reason.joined((), ("software",)) == {"software"}
    assert reset_reason.joined(("watchdog",), ("watchdog", "overheat")) == {"watchdog", "overheat"}
