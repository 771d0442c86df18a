"""The kernel's files about disks, laid out in a folder as far as Holdfast reads them."""

import os
from pathlib import Path

SECTOR_BYTES = 512


class Kernel:
    """A machine with one eMMC; `store`, a real folder, lies on its second partition."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root = root
        self.disk = root / "sys" / "devices" / "platform" / "mmc_host" / "block" / "mmcblk0"
        self.partition = self.disk / "mmcblk0p2"
        (self.disk / "device").mkdir(parents=True)
        self.partition.mkdir()
        (self.partition / "partition").write_text("2\n")
        self._io = root / "proc" / "self" / "io"
        self._io.parent.mkdir(parents=True)
        self._device_bytes = self._process_bytes = 0
        number = store.stat().st_dev
        self._link = root / "sys" / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        self._link.parent.mkdir(parents=True)
        self.mount(self.partition)
        self.writes()

    def mount(self, folder: Path | None) -> None:
        """The store lies on this device; None: on one that has no hardware, as tmpfs."""
        self._link.unlink(missing_ok=True)
        if folder:
            self._link.symlink_to(os.path.relpath(folder, self._link.parent))

    def stack(self, name: str, *below: Path) -> Path:
        """A virtual device, as of LVM, over others."""
        folder = self.root / "sys" / "devices" / "virtual" / "block" / name
        (folder / "slaves").mkdir(parents=True)
        (folder / "stat").write_text(" ".join(["9"] * 17))
        for one in below:
            (folder / "slaves" / one.name).symlink_to(one)
        return folder

    def writes(self, device_bytes: int = 0, process_bytes: int = 0) -> None:
        """So much more was written."""
        self._device_bytes += device_bytes
        self._process_bytes += process_bytes
        fields = [0] * 17
        fields[6] = self._device_bytes // SECTOR_BYTES
        (self.disk / "stat").write_text("  ".join(map(str, fields)) + "\n")
        (self.partition / "stat").write_text(" ".join(["7"] * 17) + "\n")
        names = "rchar", "wchar", "syscr", "syscw", "read_bytes"
        rows = [*((name, 5) for name in names), ("write_bytes", self._process_bytes)]
        self._io.write_text("".join(f"{name}: {count}\n" for name, count in rows))

    def attach_again(self) -> None:
        """The disk was away for a moment; its counts begin at zero."""
        self._device_bytes = 0
        self.writes()

    def say_life_time(self, said: str) -> None:
        """As the eMMC reports it."""
        (self.disk / "device" / "life_time").write_text(f"{said}\n")
