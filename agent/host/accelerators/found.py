"""Who can be asked on this machine."""

from pathlib import Path

from agent.host.accelerators.accelerator import Accelerators
from agent.host.accelerators.jetson import Jetson
from agent.host.accelerators.none import NoAccelerator
from agent.host.accelerators.nvml import Nvml

ROOT = Path("/")
NVIDIA, DISPLAY = "0x10de", "0x03"  # of PCI: the vendor, and the class that GPUs are of


def found(root: Path = ROOT) -> Accelerators:
    """Looks at files of the kernel only, and loads nothing; `root` is where proc and sys are.

    A Jetson first: it has NVML too, which answers NotSupported there. A card counts without its
    driver, so that what is missing is said.
    """
    if b"nvidia,tegra" in _content(root / "proc/device-tree/compatible"):
        return Jetson(root)
    if (root / "proc/driver/nvidia/version").exists() or _card(root):
        return Nvml()
    return NoAccelerator()


def _card(root: Path) -> bool:
    """Whether there is a GPU of NVIDIA's on the PCI bus."""
    return any(
        _content(device / "vendor").decode().strip() == NVIDIA
        and _content(device / "class").decode().startswith(DISPLAY)
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
