"""The disk that the store lies on."""

import os
from pathlib import Path

from msgspec import Struct


class Disk(Struct, frozen=True):
    """Room on a file system, as an unprivileged user sees it."""

    size_bytes: int
    free_bytes: int


def disk(path: Path) -> Disk:
    """The file system that holds `path`."""
    found = os.statvfs(path)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
