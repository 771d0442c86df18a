"""Which folder is to be a disk of its own, as /etc/fstab says (fstab(5)), and whether it is.

Whether something is mounted, device numbers tell, not the table of mounts: systemd gives a service
a table of its own, in which its folders are mounts of themselves.
"""

import os
import re
from pathlib import Path

ROOT = Path("/")
OPTIONAL = {"noauto", "bind", "rbind"}  # may be absent, or have the device number of another
_OCTAL = re.compile(r"\\([0-7]{3})")  # a blank in a name is written \040


def point(path: Path, root: Path = ROOT) -> Path | None:
    """The mount point that /etc/fstab has for what lies at `path`; None: it has no disk of its own.

    The system's own `/` counts as none. `root` is where /etc is.
    """
    try:
        rows = (root / "etc" / "fstab").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    points = [found for row in rows if (found := _point(row)) and found in path.parents]
    return max(points, key=lambda one: len(one.parts), default=None)


def holding(path: Path) -> Path | None:
    """The mount point that a path lies below as things stand; None: it is on the system's own disk.

    What is not there yet will lie where its nearest folder does.
    """
    return next((one for one in path.parents if one != ROOT and is_mounted(one)), None)


def _point(row: str) -> Path | None:
    fields = row.split()
    if len(fields) < 2 or row.lstrip().startswith("#"):
        return None
    options = set(fields[3].split(",")) if len(fields) > 3 else set()
    where = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[1])
    return None if options & OPTIONAL or where in ("/", "none", "swap") else Path(where)


def is_mounted(where: Path) -> bool:
    """Whether a mount point has a file system of its own, one that answers."""
    try:
        return where.stat().st_dev != where.parent.stat().st_dev
    except OSError:  # no such folder; or mounted, and the disk has gone since
        return False


def absolute(path: str) -> Path:
    """A path of the configuration, as /etc/fstab would have it."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (links stay what they are)
