"""What an accelerator says of itself, whoever is asked: NVML, a Jetson's files, nobody."""

from typing import Literal, Protocol

from msgspec import Struct

from agent.errors import HoldfastError
from agent.faults import Fault, fault, fault_of_xid

Backend = Literal["nvml", "jetson", "none"]
# Why clocks are lower than they could be. `power_cap` is usual under full load; `hardware` is told
# where the board does not say whether it is heat or power.
Throttle = Literal[
    "thermal", "power_cap", "power_brake", "hardware", "under_voltage", "over_current"
]


class Reading(Struct, frozen=True, kw_only=True):
    """How one accelerator is at one moment. None: the board does not say.

    `id` stays the same as long as it is in its place: its address on the PCI bus, or `gpu`. Where
    it is not `present`, `cause` says why, `fault` of which class that is, and no more is known.
    `temperature_c_max` is where it begins to slow down by itself. `throttled` names why its clocks
    are lower than they could be (empty: they are not). `utilisation_ratio` is the part of the time,
    0 to 1, in which it computed. `energy_j` counts from a beginning of the board's own, as do the
    ECC errors; `xids` are the errors that NVIDIA's driver told of since the last reading. On a
    Jetson, memory is the machine's, and power that of the module, with its `rails_w`; `mode` is
    its power mode.
    """

    id: str
    name: str
    present: bool = True
    cause: str | None = None
    fault: Fault | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    temperature_c_max: float | None = None
    throttled: tuple[Throttle, ...] | None = None
    utilisation_ratio: float | None = None
    power_w: float | None = None
    rails_w: dict[str, float] = {}
    energy_j: float | None = None
    clock_hz: int | None = None
    clock_hz_max: int | None = None
    ecc_corrected_errors: int | None = None
    ecc_uncorrected_errors: int | None = None
    xids: tuple[int, ...] = ()
    mode: str | None = None


def fault_of(reading: Reading) -> Fault | None:
    """The fault that a reading tells of: a loss, the last Xid that needs a remedy, or heat."""
    if reading.fault:
        return reading.fault
    for xid in reversed(reading.xids):
        if found := fault_of_xid(xid):
            return found
    return fault("thermal") if hot(reading) else None


def hot(reading: Reading) -> bool:
    """Whether heat slows it, by its own word or by its own limit."""
    if "thermal" in (reading.throttled or ()):
        return True
    now_c, most_c = reading.temperature_c, reading.temperature_c_max
    return now_c is not None and most_c is not None and now_c >= most_c


class Unreadable(HoldfastError):
    """Nobody can be asked how the accelerators are; `fault` is the class of that."""

    def __init__(self, message: str, hint: str, fault: Fault | None) -> None:
        super().__init__(message, hint)
        self.fault = fault


class Accelerators(Protocol):
    """All of one machine."""

    backend: Backend

    def read(self) -> list[Reading]:
        """How each is, those included that are there no more. Blocks; one call at a time.

        Raises Unreadable.
        """
        ...
