"""What this machine has to run on, and how warm its CPU is: what the kernel says, for anybody.

/sys/class/power_supply (Documentation/ABI/testing/sysfs-class-power): a `Battery`, or the `UPS` of
a driver, whose `status` is Discharging has `capacity` percent left; a `scope` of Device is that of
a mouse. /sys/class/thermal: zones of the CPU alone, for on some boards others say what nobody
measures (PMIC-Die of a Jetson Nano: 100 °C, always).
"""

from pathlib import Path

from agent.host.sysfs import number, text

ROOT = Path("/")
_STORES = ("Battery", "UPS")
_ZONES = ("cpu", "x86_pkg_temp", "soc", "coretemp", "k10temp")
_SENSIBLE_C = range(-40, 151)


def battery_left(root: Path = ROOT) -> float | None:
    """What is left of the batteries, 0 to 1: of the emptiest that is being discharged.

    1 where none is; None where there is no battery, or none says.
    """
    left = list[float]()
    for one in sorted((root / "sys/class/power_supply").glob("*")):
        if text(one / "type") not in _STORES or text(one / "scope") == "Device":
            continue
        percent = number(one / "capacity")
        if text(one / "status") != "Discharging":
            left.append(1.0)
        elif percent is not None:
            left.append(percent / 100)
    return min(left, default=None)


def cpu_c(root: Path = ROOT) -> float | None:
    """The hottest thermal zone of the CPU; None where none says."""
    found = [
        milli / 1000
        for zone in (root / "sys/class/thermal").glob("thermal_zone*")
        if text(zone / "type").lower().startswith(_ZONES)
        and (milli := number(zone / "temp")) is not None
        and int(milli / 1000) in _SENSIBLE_C
    ]
    return max(found, default=None)
