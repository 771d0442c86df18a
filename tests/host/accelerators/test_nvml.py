"""Cards of NVIDIA's: what they say, what they do not, and how they get lost."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.faults import fault
from agent.host.accelerators.accelerator import Reading, Throttle, Unreadable
from agent.host.accelerators.nvml import Nvml
from tests.host.accelerators.libnvml import (
    GPU_IS_LOST,
    HW_SLOWDOWN,
    HW_THERMAL,
    IDLE,
    NOT_SUPPORTED,
    POWER_CAP,
    SW_THERMAL,
    UNKNOWN,
    VERSION_MISMATCH,
    Card,
    Library,
    bound,
)

DRIVER = Path("/proc/driver/nvidia/version")
Bed = tuple[Library, Nvml, Card]
WHOLE = Reading(
    id="0000:01:00.0",
    name="NVIDIA RTX 4000 Ada Generation",
    memory_used_bytes=3 << 30,
    memory_total_bytes=20 << 30,
    temperature_c=54,
    temperature_c_max=96,
    throttled=(),
    utilisation_ratio=0.73,
    power_w=61.25,
    energy_j=1234.567,
    clock_hz=1_575_000_000,
    clock_hz_max=3_105_000_000,
    ecc_corrected_errors=7,
    ecc_uncorrected_errors=0,
)
QUESTIONS = {
    "nvmlDeviceGetMemoryInfo": ["memory_used_bytes", "memory_total_bytes"],
    "nvmlDeviceGetUtilizationRates": ["utilisation_ratio"],
    "nvmlDeviceGetTemperature": ["temperature_c"],
    "nvmlDeviceGetTemperatureThreshold": ["temperature_c_max"],
    "nvmlDeviceGetCurrentClocksThrottleReasons": ["throttled"],
    "nvmlDeviceGetPowerUsage": ["power_w"],
    "nvmlDeviceGetTotalEnergyConsumption": ["energy_j"],
    "nvmlDeviceGetClockInfo": ["clock_hz"],
    "nvmlDeviceGetMaxClockInfo": ["clock_hz_max"],
    "nvmlDeviceGetTotalEccErrors": ["ecc_corrected_errors", "ecc_uncorrected_errors"],
}


@pytest.fixture
def bed() -> Iterator[Bed]:
    card = Card()
    with bound(card) as (library, nvml):
        yield library, nvml, card


def told(reading: Reading) -> set[str]:
    """The fields that are not None."""
    return {name for name in reading.__struct_fields__ if getattr(reading, name) is not None}


def test_a_card_says_all_in_units_of_the_si(bed: Bed) -> None:
    _, nvml, _ = bed
    assert nvml.read() == [WHOLE]


@pytest.mark.parametrize(("question", "fields"), QUESTIONS.items())
@pytest.mark.parametrize("absent", [False, True], ids=["not supported", "not in this version"])
def test_what_one_question_does_not_tell_is_none_and_the_rest_is_there(
    bed: Bed, question: str, fields: list[str], absent: bool
) -> None:
    library, nvml, _ = bed
    library.refuses = {} if absent else {question: NOT_SUPPORTED}
    library.missing = {question} if absent else set()
    (reading,) = nvml.read()
    assert told(reading) == told(WHOLE) - set(fields)


def test_a_card_that_supports_nothing_is_there_all_the_same(bed: Bed) -> None:
    """As on a Jetson, and under some hypervisors."""
    library, nvml, _ = bed
    more = ("nvmlDeviceGetPciInfo_v3", "nvmlEventSetCreate", "nvmlDeviceRegisterEvents")
    library.refuses = dict.fromkeys((*QUESTIONS, *more), NOT_SUPPORTED)
    assert nvml.read() == [Reading(id="gpu0", name=WHOLE.name)]


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (IDLE, ()),
        (POWER_CAP, ("power_cap",)),
        (SW_THERMAL, ("thermal",)),
        (SW_THERMAL | HW_THERMAL | HW_SLOWDOWN, ("thermal", "hardware")),
    ],
)
def test_why_its_clocks_are_low(bed: Bed, bits: int, reasons: tuple[Throttle, ...]) -> None:
    _, nvml, card = bed
    card.reasons = bits
    (reading,) = nvml.read()
    assert reading.throttled == reasons


def test_xids_are_told_once_each_and_not_waited_for(bed: Bed) -> None:
    _, nvml, card = bed
    nvml.read()
    card.xids = [31, 13]
    assert [one.xids for one in nvml.read()] == [(31, 13)]
    assert [one.xids for one in nvml.read()] == [()]
    card.xids = [31] * 20
    assert [len(one.xids) for one in nvml.read()] == [16]
    assert [len(one.xids) for one in nvml.read()] == [4]


@pytest.mark.parametrize("question", [*QUESTIONS, "nvmlDeviceGetHandleByIndex_v2"])
def test_a_card_lost_in_the_middle_of_a_reading_is_gone_and_may_come_back(
    bed: Bed, question: str
) -> None:
    library, nvml, card = bed
    nvml.read()
    library.refuses, card.xids = {question: GPU_IS_LOST}, [79]
    (lost,) = nvml.read()
    assert (lost.id, lost.name, lost.present) == (WHOLE.id, WHOLE.name, False)
    assert (lost.cause, lost.fault) == ("NVML: GPU is lost", fault("off_the_bus"))
    assert lost.xids == (79,)
    library.refuses = {}
    assert nvml.read() == [WHOLE]
    assert library.calls.count("nvmlInitWithFlags") == 2, "a handle stays lost"


def test_a_card_that_answers_each_question_with_an_unknown_error_is_gone(bed: Bed) -> None:
    """NVIDIA/open-gpu-kernel-modules#1342 has it after the bus was lost."""
    library, nvml, _ = bed
    nvml.read()
    library.refuses = dict.fromkeys(QUESTIONS, UNKNOWN)
    (lost,) = nvml.read()
    assert (lost.present, lost.cause) == (False, "NVML: Unknown Error")
    del library.refuses["nvmlDeviceGetPowerUsage"]
    (reading,) = nvml.read()
    assert told(reading) == {"id", "name", "present", "power_w", "rails_w", "xids"}


def test_a_card_that_nvml_does_not_find_any_more_is_not_forgotten() -> None:
    first, second = Card(1), Card(0x41, "NVIDIA L4")
    with bound(first, second) as (library, nvml):
        assert [one.id for one in nvml.read()] == ["0000:01:00.0", "0000:41:00.0"]
        library.cards = [first]
        assert [one.present for one in nvml.read()] == [True, False]
        found = nvml.read()
        assert [(one.name, one.present) for one in found] == [
            (WHOLE.name, True),
            ("NVIDIA L4", False),
        ]
        assert found[1].cause == "NVML does not find it any more"
        assert found[1].fault == fault("off_the_bus")
        library.cards = [first, second]
        assert [one.present for one in nvml.read()] == [True, True]


def test_a_driver_that_does_not_fit_its_library_is_said_until_it_does(bed: Bed) -> None:
    library, nvml, _ = bed
    library.refuses = {"nvmlInitWithFlags": VERSION_MISMATCH}
    for _ in range(2):
        with pytest.raises(Unreadable, match="version mismatch") as raised:
            nvml.read()
        assert raised.value.fault == fault("driver_mismatch", "reboot")
        assert "reboot" in raised.value.hint
    library.refuses = {}
    assert nvml.read() == [WHOLE]


def test_no_card_that_answers_is_said(bed: Bed) -> None:
    library, nvml, _ = bed
    library.cards = []
    with pytest.raises(Unreadable, match="no card that answers"):
        nvml.read()


@pytest.mark.skipif(DRIVER.exists(), reason="there is a driver")
def test_a_machine_without_the_library_says_so() -> None:
    """The real binding, and the real loader."""
    with pytest.raises(Unreadable, match="NVML Shared Library Not Found") as raised:
        Nvml().read()
    assert raised.value.fault == fault("ep_missing")
    assert "install NVIDIA's driver" in raised.value.hint


def test_a_binding_that_is_not_installed_is_said() -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'pynvml'")

    with pytest.raises(Unreadable, match="pynvml"):
        Nvml(missing).read()


def test_nothing_is_loaded_before_the_first_reading() -> None:
    code = (
        "import sys; from agent.host.accelerators.found import found; found();"
        "from agent.host.accelerators.nvml import Nvml; Nvml(); print('pynvml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(not DRIVER.exists(), reason="no card of NVIDIA's here")
def test_a_real_card_says_what_it_is() -> None:
    nvml = Nvml()
    for reading in (*nvml.read(), *nvml.read()):
        assert reading.present
        assert reading.name
        assert len(reading.id) == len("0000:01:00.0")
        assert reading.temperature_c is None or 0 < reading.temperature_c < 120
        assert reading.utilisation_ratio is None or 0 <= reading.utilisation_ratio <= 1
        assert reading.memory_total_bytes is None or reading.memory_total_bytes > 1 << 28
