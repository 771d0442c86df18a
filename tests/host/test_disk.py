"""The disk under a path: the whole device, what was written to it, and what nobody tells."""

import os
from pathlib import Path

import pytest

from agent.host.disk import Writes, block, disk
from tests.host.sysfs import Kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "root", tmp_path)


def test_the_whole_device_counts_not_the_partition(kernel: Kernel, tmp_path: Path) -> None:
    kernel.writes(device_bytes=4096, process_bytes=1024)
    writes = Writes(tmp_path, kernel.root)
    assert writes.block is not None
    assert writes.block.name == "mmcblk0"
    assert writes.read() == {"process": 1024, "device": 4096}
    kernel.writes(device_bytes=512)
    assert writes.read() == {"process": 1024, "device": 4608}


def test_the_hardware_below_a_stack_is_found(kernel: Kernel, tmp_path: Path) -> None:
    crypt = kernel.stack("dm-0", kernel.partition)
    kernel.mount(kernel.stack("dm-1", crypt))
    found = block(tmp_path, kernel.root)
    assert found is not None
    assert found.name == "mmcblk0"


@pytest.mark.parametrize("below", [0, 2])
def test_a_device_over_none_or_several_is_unknown(
    kernel: Kernel, tmp_path: Path, below: int
) -> None:
    kernel.mount(kernel.stack("md0", *[kernel.partition, kernel.disk][:below]))
    assert block(tmp_path, kernel.root) is None


def test_a_file_system_without_a_device_is_unknown(kernel: Kernel, tmp_path: Path) -> None:
    kernel.mount(None)
    writes = Writes(tmp_path, kernel.root)
    assert writes.block is None
    assert writes.read() == {"process": 0}


def test_what_the_kernel_does_not_tell_is_left_out(kernel: Kernel, tmp_path: Path) -> None:
    writes = Writes(tmp_path, kernel.root)
    (kernel.disk / "stat").write_text("1 2 3\n")
    (kernel.root / "proc" / "self" / "io").unlink()
    assert writes.read() == {}


def test_an_emmc_says_how_much_of_its_life_is_used(kernel: Kernel, tmp_path: Path) -> None:
    found = block(tmp_path, kernel.root)
    assert found is not None
    assert found.life_time() is None
    kernel.say_life_time("0x02 0x01")
    assert found.life_time() == "0x02 0x01"


def test_the_counts_of_this_machine_are_read(tmp_path: Path) -> None:
    writes = Writes(tmp_path)
    before = writes.read()
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    after = writes.read()
    assert before.keys() == after.keys()
    if "device" in before:  # neither tmpfs nor overlay
        assert after["device"] - before["device"] >= 1 << 20
        assert after["process"] - before["process"] >= 1 << 20


def test_room_is_counted_in_bytes(tmp_path: Path) -> None:
    space = disk(tmp_path)
    assert 0 < space.free_bytes <= space.size_bytes
