"""A Jetson's GPU, by the kernel's files; NVML answers NotSupported there.

Which files these are, and in which units: jetson/README.md. They are looked for anew with each
reading, for drivers come while the machine boots. What is not there, cannot be read (a sensor is
off while its part sleeps) or makes no sense is None.
"""

from collections.abc import Iterator
from pathlib import Path

from agent.faults import fault
from agent.host.accelerators.accelerator import Backend, Reading, Throttle
from agent.host.sysfs import number, text

ROOT = Path("/")
ID = "gpu"
# What the kernel calls it behind its address: 17000000.ga10b; Thor calls it gpu-gpc-0.
_GPUS = ("gpu", "gm20b", "gp10b", "gv11b", "ga10b")
_THOR = "gpu-gpc-0"
# Cooling devices that lower the GPU's clocks: at work while their state is above 0.
_SLOWING = ("gpu-throttle-alert", "gpu-balanced")
# Events of the over-current protection, each of which slows the whole chip for a moment.
_EVENTS: dict[str, Throttle] = {
    "oc1_event_cnt": "under_voltage",
    "oc2_event_cnt": "over_current",
    "oc3_event_cnt": "over_current",
}
_WHOLE = ("VDD_IN", "POM_5V_IN")  # rails that carry the whole module, where there is one
_WITHIN = ("VDDQ_VDD2_1V8AO",)  # rails that hang on another that is measured
_OFFLINE_C = -255.0  # a sensor says -256 while its part sleeps
_PER_MILLE = 1000


class Jetson:
    """The one GPU of the module."""

    backend: Backend = "jetson"

    def __init__(self, root: Path = ROOT) -> None:
        """`root` is where proc, sys, etc and var are."""
        self._sys = root / "sys"
        self._proc = root / "proc"
        self._root = root
        self._events: dict[str, int] = {}  # counts at the last reading

    def read(self) -> list[Reading]:
        """How it is."""
        gpu = self._gpu()
        name = text(self._proc / "device-tree/model").rstrip("\0") or "Jetson"
        if gpu is None:
            cause = "the kernel shows no GPU below /sys/class/devfreq: its driver is not loaded"
            lost = fault("off_the_bus")
            return [Reading(id=ID, name=name, present=False, cause=cause, fault=lost)]
        used_bytes, total_bytes = self._memory_bytes()
        load = number(gpu / "device/load")
        rails_w = dict(self._rails_w())
        zone = self._zone()
        return [
            Reading(
                id=ID,
                name=name,
                memory_used_bytes=used_bytes,
                memory_total_bytes=total_bytes,
                temperature_c=_temperature_c(zone),
                temperature_c_max=_passive_c(zone),
                throttled=self._throttled(),
                utilisation_ratio=None if load is None else load / _PER_MILLE,
                power_w=_whole_w(rails_w),
                rails_w=rails_w,
                clock_hz=number(gpu / "cur_freq"),
                clock_hz_max=number(gpu / "max_freq"),
                mode=self._mode(),
            )
        ]

    def _gpu(self) -> Path | None:
        for entry in sorted((self._sys / "class/devfreq").glob("*")):
            if entry.name == _THOR or entry.name.rpartition(".")[2] in _GPUS:
                return entry
        return None

    def _memory_bytes(self) -> tuple[int | None, int | None]:
        """Used, and all: the GPU has no memory of its own."""
        rows = text(self._proc / "meminfo").splitlines()
        kib = {key: value.split() for key, _, value in (row.partition(":") for row in rows)}
        try:
            total, free = (int(kib[key][0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        except (LookupError, ValueError):
            return None, None
        return total - free, total

    def _zone(self) -> Path | None:
        """The thermal zone of the GPU: gpu-thermal, of old GPU-therm."""
        for zone in sorted((self._sys / "class/thermal").glob("thermal_zone*")):
            if text(zone / "type").lower().startswith("gpu"):
                return zone
        return None

    def _throttled(self) -> tuple[Throttle, ...] | None:
        """What slows it now, or did so since the last reading; None: nothing tells."""
        states = [
            number(device / "cur_state")
            for device in (self._sys / "class/thermal").glob("cooling_device*")
            if text(device / "type") in _SLOWING
        ]
        events = dict(self._event_counts())
        if not states and not events:
            return None
        found: list[Throttle] = ["thermal"] if any(states) else []
        for name, count in events.items():
            if count > self._events.get(name, count):
                found.append(_EVENTS[name])
        self._events = events
        return tuple(dict.fromkeys(found))

    def _event_counts(self) -> Iterator[tuple[str, int]]:
        for name in _EVENTS:
            for path in (self._sys / "class/hwmon").glob(f"*/{name}"):
                if (count := number(path)) is not None:
                    yield name, count

    def _rails_w(self) -> Iterator[tuple[str, float]]:
        """What the INA3221 on the board measure, by the name of each rail."""
        for label in sorted((self._sys / "class/hwmon").glob("*/in[123]_label")):
            if text(label.parent / "name") == "ina3221":
                channel = label.name[2]
                millivolt = number(label.parent / f"in{channel}_input")
                milliampere = number(label.parent / f"curr{channel}_input")
                if millivolt is not None and milliampere is not None:
                    yield from _named(label, millivolt * milliampere / 1e6)
        for label in sorted((self._sys / "bus/iio/devices").glob("*/rail_name_[012]")):
            milliwatt = number(label.parent / f"in_power{label.name[-1]}_input")
            if milliwatt is not None:
                yield from _named(label, milliwatt / 1e3)

    def _mode(self) -> str | None:
        """The power mode, by its name in nvpmodel's configuration; else by its number."""
        mode = power_mode(self._root)
        if mode is None:
            return None
        for row in text(self._root / "etc/nvpmodel.conf").splitlines():
            head, _, name = row.partition("NAME=")  # < POWER_MODEL ID=2 NAME=MAXN_SUPER >
            if head.split() == ["<", "POWER_MODEL", f"ID={mode}"]:
                return name.rstrip(" >")
        return str(mode)


def power_mode(root: Path = ROOT) -> int | None:
    """The number of the power mode that nvpmodel has set; None where it does not say."""
    said = text(root / "var/lib/nvpmodel/status")  # pmode:0002 fmode:quiet
    digits = said.partition("pmode:")[2].partition(" ")[0]
    return int(digits) if digits.isdigit() else None


def _named(label: Path, power_w: float) -> Iterator[tuple[str, float]]:
    """Channels that measure nothing are called NC."""
    name = text(label)
    if name and name != "NC":
        yield name, round(power_w, 3)


def _whole_w(rails_w: dict[str, float]) -> float | None:
    """What the module takes."""
    for name in _WHOLE:
        if name in rails_w:
            return rails_w[name]
    own = [power_w for name, power_w in rails_w.items() if name not in _WITHIN]
    return round(sum(own), 3) if own else None


def _temperature_c(zone: Path | None) -> float | None:
    milli = number(zone / "temp") if zone else None
    return None if milli is None or milli / 1000 <= _OFFLINE_C else milli / 1000


def _passive_c(zone: Path | None) -> float | None:
    """The lowest trip point at which the kernel slows it down."""
    found = [
        number(kind.with_name(kind.name.replace("type", "temp")))
        for kind in (zone.glob("trip_point_*_type") if zone else ())
        if text(kind) == "passive"
    ]
    known = [milli / 1000 for milli in found if milli]
    return min(known, default=None)
