"""A board's files of power and heat, below a folder of a test's own."""

from pathlib import Path


def battery(root: Path, status: str, percent: int, name: str = "BAT0", **more: str) -> None:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True, exist_ok=True)
    said = {"type": "Battery", "status": status, "capacity": str(percent), **more}
    for key, value in said.items():
        (folder / key).write_text(f"{value}\n")


def zone(root: Path, kind: str, celsius: float, number: int = 0) -> None:
    folder = root / f"sys/class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text(f"{kind}\n")
    (folder / "temp").write_text(f"{celsius * 1000:.0f}\n")


def mode(root: Path, number: int) -> None:
    folder = root / "var/lib/nvpmodel"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status").write_text(f"pmode:{number:04d} fmode:quiet\n")
