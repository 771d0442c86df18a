"""Jetsons by their files: three boards, what each tells, and what is None."""

from pathlib import Path

import pytest

from agent.faults import fault
from agent.host.accelerators.accelerator import Reading
from agent.host.accelerators.jetson import Jetson
from tests.host.accelerators.boards import laid_out

KIB = 1024
BOARDS = {
    "orin-nano": Reading(
        id="gpu",
        name="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        memory_used_bytes=(7802088 - 4718592) * KIB,
        memory_total_bytes=7802088 * KIB,
        temperature_c=54.531,
        temperature_c_max=99.0,
        throttled=(),
        utilisation_ratio=0.734,
        power_w=11.356,  # VDD_IN alone: the others are parts of it
        rails_w={"VDD_IN": 11.356, "VDD_CPU_GPU_CV": 5.538, "VDD_SOC": 2.528},
        clock_hz=918_000_000,
        clock_hz_max=1_020_000_000,
        mode="MAXN_SUPER",
    ),
    "orin-agx": Reading(
        id="gpu",
        name="NVIDIA Jetson AGX Orin Developer Kit",
        memory_used_bytes=(31902040 - 28311552) * KIB,
        memory_total_bytes=31902040 * KIB,
        temperature_c=None,  # it sleeps
        temperature_c_max=99.0,
        throttled=(),
        utilisation_ratio=0.0,
        power_w=7.948,  # all rails but VDDQ_VDD2_1V8AO, which hangs on VIN_SYS_5V0
        rails_w={
            "VDD_GPU_SOC": 3.16,
            "VDD_CPU_CV": 0.79,
            "VIN_SYS_5V0": 3.998,
            "VDDQ_VDD2_1V8AO": 1.01,
        },
        clock_hz=306_000_000,
        clock_hz_max=1_300_500_000,
        mode="MODE_50W",
    ),
    "xavier-agx": Reading(
        id="gpu",
        name="Jetson-AGX",
        memory_used_bytes=(32683908 - 26214400) * KIB,
        memory_total_bytes=32683908 * KIB,
        temperature_c=63.0,
        temperature_c_max=95.5,
        throttled=(),
        utilisation_ratio=0.412,
        power_w=10.948,
        rails_w={
            "GPU": 3.969,
            "CPU": 1.45,
            "SOC": 2.213,
            "CV": 0.0,
            "VDDRQ": 0.916,
            "SYS5V": 2.4,
        },
        clock_hz=905_250_000,
        clock_hz_max=1_377_000_000,
        mode="MAXN",
    ),
}


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return laid_out("orin-nano", tmp_path)


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_tells_what_its_files_tell(tmp_path: Path, board: str) -> None:
    assert Jetson(laid_out(board, tmp_path)).read() == [BOARDS[board]]


def test_heat_slows_the_gpu_and_other_parts_do_not(nano: Path) -> None:
    thermal = nano / "sys/class/thermal"
    (thermal / "cooling_device1/cur_state").write_text("1\n")  # the CPU's
    (thermal / "cooling_device3/cur_state").write_text("1\n")  # the surface's
    jetson = Jetson(nano)
    assert [one.throttled for one in jetson.read()] == [()]
    (thermal / "cooling_device2/cur_state").write_text("1\n")
    assert [one.throttled for one in jetson.read()] == [("thermal",)]


def test_want_of_power_is_told_by_counts_that_grow(nano: Path) -> None:
    jetson, events = Jetson(nano), nano / "sys/class/hwmon/hwmon2"
    assert [one.throttled for one in jetson.read()] == [()], "41 events are of before"
    (events / "oc1_event_cnt").write_text("1\n")
    (events / "oc3_event_cnt").write_text("45\n")
    assert [one.throttled for one in jetson.read()] == [("under_voltage", "over_current")]
    assert [one.throttled for one in jetson.read()] == [()]


def test_what_cannot_be_read_is_none_and_the_rest_is_there(nano: Path) -> None:
    """As a sensor that answers EAGAIN while its part sleeps, or a driver that comes later."""
    for file in ("thermal/thermal_zone1/temp", "devfreq/17000000.gpu/device/load"):
        path = nano / "sys/class" / file
        path.unlink()
        path.mkdir()
    (nano / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("soon\n")
    (nano / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    (nano / "proc/meminfo").unlink()
    (nano / "var/lib/nvpmodel/status").unlink()
    (reading,) = Jetson(nano).read()
    assert reading.present
    unknown = ("temperature_c", "utilisation_ratio", "clock_hz", "memory_total_bytes", "mode")
    assert [getattr(reading, name) for name in unknown] == [None] * 5
    assert (reading.clock_hz_max, reading.throttled) == (1_020_000_000, ())
    assert reading.power_w == pytest.approx(8.066), "the sum of what is known"


def test_a_board_that_measures_nothing_has_no_power_and_no_throttling(nano: Path) -> None:
    for path in (nano / "sys/class").glob("hwmon/*/*"):
        path.unlink()
    for path in (nano / "sys/class/thermal").glob("cooling_device*/*"):
        path.unlink()
    (reading,) = Jetson(nano).read()
    assert (reading.power_w, reading.rails_w, reading.throttled) == (None, {}, None)


def test_a_mode_without_a_name_is_its_number(nano: Path) -> None:
    (nano / "etc/nvpmodel.conf").unlink()
    assert [one.mode for one in Jetson(nano).read()] == ["2"]


def test_a_gpu_whose_driver_is_not_loaded_is_not_there_and_may_come(nano: Path) -> None:
    gpu, away = nano / "sys/class/devfreq/17000000.gpu", nano / "away"
    gpu.rename(away)
    jetson = Jetson(nano)
    (reading,) = jetson.read()
    assert (reading.present, reading.name) == (False, BOARDS["orin-nano"].name)
    assert "/sys/class/devfreq" in str(reading.cause)
    assert reading.fault == fault("off_the_bus")
    away.rename(gpu)
    assert jetson.read() == [BOARDS["orin-nano"]]
