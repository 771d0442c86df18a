"""The disk that the store lies on: its room, and what the kernel counts as written to it."""

import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

SECTOR_BYTES = 512  # of the kernel's counts, whatever the device's own are
STAT_SECTORS_WRITTEN = 6  # Documentation/block/stat.rst
ROOT = Path("/")
SOURCES = ("process", "device")  # who wrote: this process, and all that use the device


class Disk(Struct, frozen=True):
    """Room on a file system, as an unprivileged user sees it."""

    size_bytes: int
    free_bytes: int


class Block(Struct, frozen=True):
    """A whole block device, by its folder in sysfs."""

    folder: Path

    @property
    def name(self) -> str:
        """As /dev has it: mmcblk0, nvme0n1."""
        return self.folder.name

    def written_bytes(self) -> int | None:
        """Bytes written to it by everybody since it was attached; None: not told."""
        with suppress(OSError, LookupError, ValueError):
            sectors = (self.folder / "stat").read_text().split()[STAT_SECTORS_WRITTEN]
            return int(sectors) * SECTOR_BYTES
        return None

    def life_time(self) -> str | None:
        """How much of its life an eMMC says it has used, in tenths (hex); None: it does not say."""
        with suppress(OSError):
            return (self.folder / "device" / "life_time").read_text().strip() or None
        return None


class Writes:
    """The kernel's counts of bytes written, by SOURCES."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        """`path` lies on the device; `root` is where proc and sys are mounted."""
        self._io = root / "proc" / "self" / "io"
        self.block = block(path, root)

    def read(self) -> dict[str, int]:
        """The counts, each from a beginning of its own; without those that nobody tells."""
        device = self.block.written_bytes() if self.block else None
        found = zip(SOURCES, (self._process_bytes(), device), strict=True)
        return {source: count for source, count in found if count is not None}

    def _process_bytes(self) -> int | None:
        with suppress(OSError, ValueError, LookupError):
            rows = dict(row.split(": ") for row in self._io.read_text().splitlines())
            return int(rows["write_bytes"])
        return None


def disk(path: Path) -> Disk:
    """The file system that holds `path`."""
    found = os.statvfs(path)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def block(path: Path, root: Path = ROOT) -> Block | None:
    """The hardware under `path`; None where sysfs names none, or several (tmpfs, overlay, RAID)."""
    number = path.stat().st_dev
    link = root / "sys" / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    if not link.exists():
        return None
    folder = link.resolve()
    while True:
        if (folder / "partition").exists():
            folder = folder.parent
        if (folder / "device").exists():
            return Block(folder)
        below = list((folder / "slaves").glob("*"))  # of LVM, dm-crypt
        if len(below) != 1:
            return None
        folder = below[0].resolve()
