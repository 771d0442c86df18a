"""Cards of NVIDIA's, asked through their driver's library NVML.

Its binding, nvidia-ml-py, takes 17 MiB and is loaded with the first reading, so that machines
without such a card do not pay for it. What a card cannot tell is None, whatever the reason; a card
that answers nothing, or that NVML says is lost, is not present. After that NVML begins anew with
the next reading: a handle stays lost, also when the card is back.

While it is begun, the driver stays loaded, which is what NVIDIA calls persistence.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from msgspec import Struct

from agent.faults import fault, fault_in
from agent.host.accelerators.accelerator import Backend, Reading, Throttle, Unreadable

log = logging.getLogger("accelerator")
_LONG_ADDRESS = len("00000000:01:00.0")  # its domain has four digits more than the kernel's
_WAIT_MS = 1  # for an Xid that is not there
_XIDS_MAX = 16  # of one reading; what is left comes with the next one
_REASONS: tuple[tuple[str, Throttle], ...] = (
    ("nvmlClocksThrottleReasonSwThermalSlowdown", "thermal"),
    ("nvmlClocksThrottleReasonHwThermalSlowdown", "thermal"),
    ("nvmlClocksThrottleReasonSwPowerCap", "power_cap"),
    ("nvmlClocksThrottleReasonHwPowerBrakeSlowdown", "power_brake"),
    ("nvmlClocksThrottleReasonHwSlowdown", "hardware"),
)
_GONE = ("Uninitialized", "DriverNotLoaded", "GpuIsLost", "ResetRequired", "LibRmVersionMismatch")
_MUTE = ("NotSupported", "NoPermission", "FunctionNotFound", "InvalidArgument", "NoData")
_MISSING = ("LibraryNotFound", "DriverNotLoaded")


class Card(Struct):
    """One that answered when NVML began; `events` is a set of its own, for its Xids."""

    index: int
    id: str
    events: Any | None


def pynvml() -> Any:
    """The binding of NVML."""
    import pynvml as binding

    return binding


class Nvml:
    """All cards; those that were seen once are not forgotten."""

    backend: Backend = "nvml"

    def __init__(self, binding: Callable[[], Any] = pynvml) -> None:
        """`binding` loads the module that speaks with NVML."""
        self._load = binding
        self._nvml: Any = None
        self._begun = False
        self._cards: list[Card] = []
        self._names: dict[str, str] = {}  # by id

    def read(self) -> list[Reading]:
        """How each card is. Raises Unreadable."""
        nvml = self._nvml = self._nvml or self._loaded()
        try:
            if not self._begun:
                self._begin()
        except nvml.NVMLError as error:
            self._end()
            raise self._unreadable(error) from error
        if not self._names:
            self._end()
            raise Unreadable(
                "NVML finds no card that answers",
                "see in the kernel's log (NVRM) why; a reboot may bring it back",
                fault("off_the_bus"),
            )
        found = [self._reading(card) for card in self._cards]
        here = {card.id for card in self._cards}
        found += [
            self._absent(id_, "NVML does not find it any more") for id_ in self._names.keys() - here
        ]
        if not all(one.present for one in found):
            self._end()
        return sorted(found, key=lambda one: one.id)

    def _loaded(self) -> Any:
        try:
            return self._load()
        except ImportError as error:
            hint = "install what requirements/ names"
            raise Unreadable(f"nvidia-ml-py: {error}", hint, fault("ep_missing")) from error

    def _begin(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        self._begun = True
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                card = Card(index, self._id(handle, index), self._listening(handle))
                self._names[card.id] = nvml.nvmlDeviceGetName(handle)
            except nvml.NVMLError as error:  # one that was there before is told to be gone
                log.warning("NVML: card %d does not answer: %s", index, error)
            else:
                self._cards.append(card)

    def _end(self) -> None:
        for card in self._cards:
            if card.events is not None:
                with suppress(self._nvml.NVMLError):
                    self._nvml.nvmlEventSetFree(card.events)
        self._cards = []
        if self._begun:
            self._begun = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _id(self, handle: Any, index: int) -> str:
        """Its address on the bus, as the kernel's log has it."""
        address = _Asked(self._nvml)(self._nvml.nvmlDeviceGetPciInfo, handle)
        text = str(address.busId).lower() if address else f"gpu{index}"
        return text.removeprefix("0000") if len(text) == _LONG_ADDRESS else text

    def _listening(self, handle: Any) -> Any | None:
        """A set that gathers its Xids; None: it does not tell of them."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            return None
        return events

    def _reading(self, card: Card) -> Reading:
        nvml, ask = self._nvml, _Asked(self._nvml)
        xids = self._xids(card)
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(card.index)
            reading = Reading(
                id=card.id,
                name=self._names[card.id],
                throttled=self._throttled(ask, handle),
                xids=xids,
                **self._work(ask, handle),
                **self._heat(ask, handle),
                **self._errors(ask, handle),
            )
            ask.check()
        except nvml.NVMLError as error:
            return self._absent(card.id, f"NVML: {error}", xids)
        return reading

    def _work(self, ask: "_Asked", handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        clock_mhz = ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        clock_mhz_max = ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
        return {
            "memory_used_bytes": memory.used if memory else None,
            "memory_total_bytes": memory.total if memory else None,
            "utilisation_ratio": rates.gpu / 100 if rates else None,
            "clock_hz": None if clock_mhz is None else clock_mhz * 10**6,
            "clock_hz_max": None if clock_mhz_max is None else clock_mhz_max * 10**6,
        }

    def _heat(self, ask: "_Asked", handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        slowdown = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        power_mw = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        energy_mj = ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return {
            "temperature_c": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "temperature_c_max": ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, slowdown),
            "power_w": None if power_mw is None else power_mw / 1000,
            "energy_j": None if energy_mj is None else energy_mj / 1000,
        }

    def _errors(self, ask: "_Asked", handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        count, volatile = nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_VOLATILE_ECC
        corrected = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
        uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return {
            "ecc_corrected_errors": ask(count, handle, corrected, volatile),
            "ecc_uncorrected_errors": ask(count, handle, uncorrected, volatile),
        }

    def _throttled(self, ask: "_Asked", handle: Any) -> tuple[Throttle, ...] | None:
        # The name that drivers of all ages know.
        bits = ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if bits is None:
            return None
        named = [word for name, word in _REASONS if bits & getattr(self._nvml, name)]
        return tuple(dict.fromkeys(named))

    def _xids(self, card: Card) -> tuple[int, ...]:
        """Those that came since the last reading; waits for none."""
        nvml, found = self._nvml, list[int]()
        while card.events is not None and len(found) < _XIDS_MAX:
            try:
                found.append(nvml.nvmlEventSetWait_v2(card.events, _WAIT_MS).eventData)
            except nvml.NVMLError_Timeout:
                break
            except nvml.NVMLError:  # the next question says whether the card is lost
                card.events = None
        return tuple(found)

    def _absent(self, id_: str, cause: str, xids: tuple[int, ...] = ()) -> Reading:
        found = fault_in(cause) or fault("off_the_bus")
        return Reading(
            id=id_, name=self._names[id_], present=False, cause=cause, fault=found, xids=xids
        )

    def _unreadable(self, error: Any) -> Unreadable:
        text = f"NVML: {error}"
        if _is(error, self._nvml, _MISSING):
            hint = "install NVIDIA's driver if models shall run on the card; they run on the CPU"
        else:
            hint = "reboot, so that the driver that was installed last is the one that runs"
        return Unreadable(text, hint, fault_in(text))


class _Asked:
    """Questions to one card. What it does not tell is None; what is wrong is kept for `check`."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._answers = 0
        self._wrong: Exception | None = None

    def __call__(self, question: Callable[..., Any], *args: Any) -> Any:
        """The answer. Raises NVMLError where the card is gone."""
        try:
            answer = question(*args)
        except self._nvml.NVMLError as error:
            if _is(error, self._nvml, _GONE):
                raise
            if not _is(error, self._nvml, _MUTE):
                self._wrong = error
            return None
        self._answers += 1
        return answer

    def check(self) -> None:
        """Raise NVMLError if there was no answer at all, and not because it cannot give one."""
        if self._wrong and not self._answers:
            raise self._wrong


def _is(error: Any, nvml: Any, names: tuple[str, ...]) -> bool:
    """Whether it is one of these of NVML's errors; the binding has a class for each."""
    classes = (getattr(nvml, f"NVMLError_{name}", None) for name in names)
    return isinstance(error, tuple(one for one in classes if one))
