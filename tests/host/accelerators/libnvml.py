"""NVIDIA's library as its binding calls it: C functions over ctypes, and cards that a test breaks.

Names, arguments and error codes are those of NVML's documentation; the real binding stands before
it, so that what is tested is what runs on a machine with a card.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from agent.host.accelerators.nvml import Nvml
from tests.outside import DEADLINE_S

NOT_SUPPORTED, TIMEOUT, GPU_IS_LOST, VERSION_MISMATCH, UNKNOWN = 3, 10, 15, 18, 999
CLOCK_SM = 1
IDLE, POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL = 0x1, 0x4, 0x8, 0x20, 0x40


class Card:
    """One card, and what it says."""

    def __init__(self, bus: int = 1, name: str = "NVIDIA RTX 4000 Ada Generation") -> None:
        self.handle = pynvml.struct_c_nvmlDevice_t()
        self.bus_id = f"00000000:{bus:02X}:00.0"
        self.name = name
        self.temperature_c = 54
        self.reasons = IDLE
        self.energy_mj = 1_234_567
        self.uncorrected = 0
        self.xids: list[int] = []


class Library:
    """`refuses` maps a function to the code it returns; `missing` are not in this version.

    A function in `hangs` does not return before `released`.
    """

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.refuses: dict[str, int] = {}
        self.missing: set[str] = set()
        self.hangs: set[str] = set()
        self.released = threading.Event()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        own = type(self).__dict__.get(f"c_{name}")
        if own is None or name in self.missing:
            raise AttributeError(name)  # as ctypes says that a library has no such symbol

        def call(*args: Any) -> int:
            self.calls.append(name)
            if name in self.hangs:
                assert self.released.wait(DEADLINE_S), "a test left it hanging"
            return self.refuses.get(name) or own(self, *args) or 0

        return call

    def _card(self, handle: Any) -> Card:
        at = ctypes.addressof(handle.contents)
        return next(card for card in self.cards if ctypes.addressof(card.handle) == at)

    def c_nvmlInitWithFlags(self, flags: int) -> None:  # noqa: N802
        pass

    def c_nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def c_nvmlDeviceGetCount_v2(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.cards)

    def c_nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        if index.value >= len(self.cards):
            return 2
        handle._obj.contents = self.cards[index.value].handle
        return 0

    def c_nvmlDeviceGetPciInfo_v3(self, handle: Any, info: Any) -> None:  # noqa: N802
        info._obj.busId = self._card(handle).bus_id.encode()

    def c_nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> None:  # noqa: N802
        text.value = self._card(handle).name.encode()

    def c_nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:  # noqa: N802
        memory._obj.total, memory._obj.used = 20 << 30, 3 << 30

    def c_nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> None:  # noqa: N802
        rates._obj.gpu, rates._obj.memory = 73, 20

    def c_nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> None:  # noqa: N802
        celsius._obj.value = self._card(handle).temperature_c

    def c_nvmlDeviceGetTemperatureThreshold(  # noqa: N802
        self, handle: Any, threshold: Any, celsius: Any
    ) -> None:
        celsius._obj.value = {0: 101, 1: 96}[threshold.value]

    def c_nvmlDeviceGetCurrentClocksThrottleReasons(  # noqa: N802
        self, handle: Any, reasons: Any
    ) -> None:
        reasons._obj.value = self._card(handle).reasons

    def c_nvmlDeviceGetPowerUsage(self, handle: Any, milliwatt: Any) -> None:  # noqa: N802
        milliwatt._obj.value = 61_250

    def c_nvmlDeviceGetTotalEnergyConsumption(  # noqa: N802
        self, handle: Any, millijoule: Any
    ) -> None:
        millijoule._obj.value = self._card(handle).energy_mj

    def c_nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, megahertz: Any) -> int:  # noqa: N802
        megahertz._obj.value = 1575
        return 0 if kind.value == CLOCK_SM else NOT_SUPPORTED

    def c_nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: Any, megahertz: Any) -> int:  # noqa: N802
        megahertz._obj.value = 3105
        return 0 if kind.value == CLOCK_SM else NOT_SUPPORTED

    def c_nvmlDeviceGetTotalEccErrors(  # noqa: N802
        self, handle: Any, kind: Any, counter: Any, count: Any
    ) -> None:
        count._obj.value = {0: 7, 1: self._card(handle).uncorrected}[kind.value]

    def c_nvmlEventSetCreate(self, events: Any) -> None:  # noqa: N802
        self._made = pynvml.struct_c_nvmlEventSet_t()
        events._obj.contents = self._made

    def c_nvmlEventSetFree(self, events: Any) -> None:  # noqa: N802
        pass

    def c_nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, events: Any) -> None:  # noqa: N802
        card = self._card(handle)
        self._sets = [*getattr(self, "_sets", []), (ctypes.addressof(events.contents), card)]
        self._keeps = [*getattr(self, "_keeps", []), self._made]  # so that no other has its address

    def c_nvmlEventSetWait_v2(self, events: Any, found: Any, wait_ms: Any) -> int:  # noqa: N802
        at = ctypes.addressof(events.contents)
        card = next(card for place, card in self._sets if place == at)
        if not card.xids:
            return TIMEOUT
        found._obj.eventType, found._obj.eventData = 8, card.xids.pop(0)
        return 0


@contextmanager
def bound(*cards: Card) -> Iterator[tuple[Library, Nvml]]:
    """The real binding, with such a library where it would have loaded NVIDIA's."""
    library = Library(*cards)
    _put(library)
    try:
        yield library, Nvml()
    finally:
        library.released.set()
        _put(None)


def _put(library: Library | None) -> None:
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
