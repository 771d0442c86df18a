"""Who is asked on which machine."""

from pathlib import Path

import pytest

from agent.host.accelerators.found import found
from tests.host.accelerators.boards import TREES, laid_out


def card(root: Path, vendor: str, kind: str) -> Path:
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    return root


@pytest.mark.parametrize("board", sorted(tree.stem for tree in TREES.glob("*.txt")))
def test_a_jetson_is_asked_by_its_files(tmp_path: Path, board: str) -> None:
    assert found(laid_out(board, tmp_path)).backend == "jetson"


def test_a_card_of_nvidias_is_asked_through_nvml_also_without_its_driver(tmp_path: Path) -> None:
    assert found(card(tmp_path / "graphics", "0x10de", "0x030000")).backend == "nvml"
    assert found(card(tmp_path / "compute", "0x10de", "0x030200")).backend == "nvml"
    driver = tmp_path / "container/proc/driver/nvidia"
    driver.mkdir(parents=True)
    (driver / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  610.57.04\n")
    assert found(tmp_path / "container").backend == "nvml"


def test_nobody_is_asked_where_there_is_none(tmp_path: Path) -> None:
    assert found(card(tmp_path / "sound", "0x10de", "0x040300")).backend == "none"
    assert found(card(tmp_path / "intel", "0x8086", "0x030000")).backend == "none"
    assert found(tmp_path / "nothing").read() == []


def test_this_machine_has_an_answer() -> None:
    """For real: whatever it is, it is found by looking at files alone."""
    accelerators = found()
    assert accelerators.backend in ("nvml", "jetson", "none")
    if accelerators.backend == "none":
        assert accelerators.read() == []
