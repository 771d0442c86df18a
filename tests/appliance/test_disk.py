"""The disk that forgets, asked by QEMU's own client: what was flushed stays, the rest may go."""

import random
import subprocess
from pathlib import Path

import pytest

from tests.appliance.disk import SECTOR_BYTES, Disk
from tests.outside import program

pytestmark = pytest.mark.appliance
SIZE_BYTES = 1024**2


def written(path: Path, *orders: str, lies: bool = False, seed: int = 0) -> bytes:
    """What is left of a disk of zeros after these orders and a cut."""
    path.write_bytes(bytes(SIZE_BYTES))
    disk = Disk(path, lies=lies)
    disk.begin()
    given = [part for order in orders for part in ("-c", order)]
    # `abort` ends it without the flush of an orderly end.
    client = [program("qemu-io", "qemu-utils"), "-t", "none", "-f", "raw", *given]
    subprocess.run([*client, "-c", "abort", disk.url], capture_output=True, timeout=60)
    disk.cut(random.Random(seed))
    disk.end()
    return path.read_bytes()


def test_what_was_flushed_stays(tmp_path: Path) -> None:
    left = written(tmp_path / "d", "write -P 1 0 4k", "flush")
    assert left[:4096] == b"\1" * 4096


def test_what_was_not_flushed_is_any_mixture_of_its_versions(tmp_path: Path) -> None:
    orders = ("write -P 1 0 64k", "flush", "write -P 2 0 64k", "write -P 3 0 64k")
    left = written(tmp_path / "d", *orders)
    sectors = [left[at : at + SECTOR_BYTES] for at in range(0, 65_536, SECTOR_BYTES)]
    assert {one[0] for one in sectors} == {1, 2, 3}
    assert all(len(set(one)) == 1 for one in sectors), "a sector is whole"


def test_forced_unit_access_is_durable_by_itself(tmp_path: Path) -> None:
    assert written(tmp_path / "d", "write -f -P 7 0 4k")[:4096] == b"\7" * 4096


def test_a_disk_that_lies_keeps_nothing_for_sure(tmp_path: Path) -> None:
    left = written(tmp_path / "d", "write -P 1 0 64k", "flush", lies=True)
    assert 0 in left[:65_536]


def test_what_is_read_back_is_what_was_written_last(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(SIZE_BYTES))
    disk = Disk(path)
    disk.begin()
    client = [program("qemu-io", "qemu-utils"), "-t", "none", "-f", "raw"]
    orders = ["-c", "write -P 5 0 8k", "-c", "read -P 5 0 8k", "-c", "read -P 0 8k 8k", disk.url]
    done = subprocess.run([*client, *orders], capture_output=True, text=True, timeout=60)
    disk.end()
    assert done.returncode == 0, done.stdout
    assert "verification failed" not in done.stdout
