"""What reset this machine, as a Jetson's power controller says; its watchdog's driver does not.

`reset_reason` of the driver tegra-pmc (the kernel's drivers/soc/tegra/pmc.c): one of the names that
the chip has. NVIDIA's older kernels name them otherwise (TEGRA_SOFTWARE_RESET). Only what a name
says for sure is taken from it: a Nano's POWER_ON_RESET also comes of a watchdog in its power chip.
"""

from collections.abc import Collection
from pathlib import Path

DRIVER = Path("/sys/bus/platform/drivers/tegra-pmc")
_WATCHDOGS = ("WDT", "WATCHDOG")  # one for each processor of the chip, as in BCCPLEXWDT
_HEAT = ("SENSOR", "VFSENSOR", "AOTAG", "FSI_THERM")
_SOFTWARE = ("SWREST", "MAINSWRST", "SW_MAIN", "SOFTWARE_RESET")
_PIN = ("SYS_RESET", "SYS_RESET_N")  # power on, and the button


def causes(driver: Path = DRIVER) -> tuple[str, ...] | None:
    """As host/wdt.py has them, and `software`; no cause: the power; None: nobody says for sure."""
    for file in sorted(driver.glob("*/reset_reason")):
        try:
            name = file.read_text().strip().removeprefix("TEGRA_")
        except (OSError, UnicodeDecodeError):
            return None
        if any(word in name for word in _WATCHDOGS):
            return ("watchdog",)
        known = dict.fromkeys(_HEAT, ("overheat",)) | dict.fromkeys(_SOFTWARE, ("software",))
        return known.get(name, () if name in _PIN else None)
    return None


def joined(*said: Collection[str] | None) -> set[str] | None:
    """What all of them say; None: none of them says anything."""
    known = [one for one in said if one is not None]
    return {cause for one in known for cause in one} if known else None
