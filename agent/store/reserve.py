"""A file of nothing beside the store, given up when the disk is full.

On a full disk even a DELETE needs room in the WAL. With the reserve given up for it, acks, drops
and the ledger go on; it is taken again once there is room, and until then nothing new is accepted.

Limits  : RESERVE_BYTES, twice what the WAL may hold that is not in the store's file yet.
Format  : `<file>.reserve`, its blocks allocated and never written.
Recovery: none is needed; one that is missing is made anew.
"""

import math
import os
import time
from pathlib import Path

RESERVE_BYTES = 8 << 20
RETRY_S = 1.0  # how often it is tried to take it again


class Reserve:
    """Used in the store's thread alone."""

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(f"{store.name}.reserve")
        self._whole = False
        self._tried_at = -math.inf

    @property
    def given_up(self) -> bool:
        """Whether it had to be given up, and could not be taken again yet."""
        return self._tried_at >= 0 and not self._whole

    def taken(self) -> bool:
        """Whether it is whole; tried again every RETRY_S."""
        now = time.monotonic()
        if not self._whole and now - self._tried_at >= RETRY_S:
            self._tried_at = now
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
                try:
                    os.posix_fallocate(fd, 0, RESERVE_BYTES)
                finally:
                    os.close(fd)
                self._whole = True
            except OSError:  # no room yet: what is told is that the disk is full
                self.give_up()
        return self._whole

    def give_up(self) -> bool:
        """Let the disk have it; whether that made room."""
        self._whole = False
        self._tried_at = time.monotonic()
        try:
            freed = self._path.stat().st_blocks > 0
            self._path.unlink()
        except OSError:
            return False
        return freed
