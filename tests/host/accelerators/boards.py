"""Jetsons, laid out from the trees in jetson/trees."""

from pathlib import Path

from tests.outside import ROOT

TREES = ROOT / "jetson/trees"


def laid_out(board: str, root: Path) -> Path:
    """The files of a board below `root`; the device tree's texts end with NUL, as the kernel's."""
    whole = (TREES / f"{board}.txt").read_text()
    for part in whole.split("==> /")[1:]:
        name, _, content = part.partition(" <==\n")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.rstrip("\n") + "\n"
        if "device-tree" in name:
            content = content.replace("\n", "\0")
        path.write_text(content)
    return root
