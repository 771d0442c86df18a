"""Memory that the agent and one worker share, for bodies too large to be sent through a socket.

It is a memfd: it has no name, so nothing of it is left when the processes are gone, in whatever way
they went. It is sealed: a broken worker cannot shrink it, which would end the agent with SIGBUS.

Limits  : `size_bytes` for all bodies that are under way, the agent's and the worker's. A body for
          which there is no room goes through the socket: slower, never wrong. Pages that were
          written to stay in memory until `trim`.
Format  : stretches, each beginning at a multiple of ALIGN_BYTES, given out and taken back by the
          agent alone; the worker is told where to read, and where it may write its answers.
Recovery: an arena ends with its worker; the next worker gets a new one.
"""

import fcntl
import mmap
import os

ALIGN_BYTES = 64  # a cache line, and what the widest vector load wants


class Arena:
    """The agent's side: it gives out stretches and takes them back."""

    def __init__(self, size_bytes: int) -> None:
        """Raises OSError."""
        self.fd = os.memfd_create("holdfast-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size_bytes)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self._mapped = mmap.mmap(self.fd, size_bytes)
        except OSError:
            os.close(self.fd)
            raise
        self.view = memoryview(self._mapped)
        self._free = [(0, size_bytes)]  # place and length, ascending
        self._taken: dict[int, int] = {}

    def take(self, size_bytes: int) -> int | None:
        """The place of a stretch of so many bytes; None when there is no room."""
        size = -(-max(1, size_bytes) // ALIGN_BYTES) * ALIGN_BYTES
        for i, (at, room) in enumerate(self._free):
            if room >= size:
                self._free[i : i + 1] = [(at + size, room - size)] if room > size else []
                self._taken[at] = size
                return at
        return None

    def give(self, at: int) -> None:
        """Take a stretch back; what is in it may be overwritten from now on."""
        spans = sorted([*self._free, (at, self._taken.pop(at))])
        joined = [spans[0]]
        for begin, size in spans[1:]:
            last, room = joined[-1]
            if last + room == begin:
                joined[-1] = (last, room + size)
            else:
                joined.append((begin, size))
        self._free = joined

    @property
    def taken_bytes(self) -> int:
        """What is given out now."""
        return sum(self._taken.values())

    def trim(self) -> None:
        """Give the memory of what is not given out back to the system, in whole pages."""
        for at, room in self._free:
            begin, end = -(-at // mmap.PAGESIZE), (at + room) // mmap.PAGESIZE
            if begin < end:
                pages = begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE
                self._mapped.madvise(mmap.MADV_REMOVE, *pages)

    def close(self) -> None:
        """Let go of it; the memory is freed once the worker is gone too."""
        os.close(self.fd)
        self.view.release()  # now, not when somebody collects garbage
        self._mapped.close()
        self._free = []


def seen(fd: int) -> memoryview:
    """The worker's side: the whole arena."""
    size = os.fstat(fd).st_size
    return memoryview(mmap.mmap(fd, size))
