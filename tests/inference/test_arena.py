"""Shared memory: what is given out never overlaps, and nobody can take it away from under us."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.inference.arena import ALIGN_BYTES, Arena, seen

SIZE_BYTES = 64 * ALIGN_BYTES


class Stretches(RuleBasedStateMachine):
    """The arena against a plain picture of it."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(SIZE_BYTES)
        self.held: dict[int, int] = {}

    @rule(size=some.integers(0, SIZE_BYTES + 1))
    def take(self, size: int) -> None:
        at = self.arena.take(size)
        if at is None:
            assert not self.fits(size), "there was room"
            return
        assert at % ALIGN_BYTES == 0
        assert at >= 0 and at + size <= SIZE_BYTES
        assert all(at + max(1, size) <= a or a + s <= at for a, s in self.held.items())
        self.held[at] = max(1, size)

    @precondition(lambda self: self.held)
    @rule(data=some.data())
    def give(self, data: some.DataObject) -> None:
        at = data.draw(some.sampled_from(sorted(self.held)))
        self.arena.give(at)
        del self.held[at]

    def fits(self, size: int) -> bool:
        """Whether a gap is wide enough."""
        free = [True] * (SIZE_BYTES // ALIGN_BYTES)
        for at, length in self.held.items():
            for i in range(at // ALIGN_BYTES, (at + length - 1) // ALIGN_BYTES + 1):
                free[i] = False
        gaps = "".join(".x"[not one] for one in free).split("x")
        return max(map(len, gaps)) * ALIGN_BYTES >= max(1, size)

    @invariant()
    def nothing_is_lost(self) -> None:
        aligned = sum(-(-size // ALIGN_BYTES) * ALIGN_BYTES for size in self.held.values())
        assert self.arena.taken_bytes == aligned
        if not self.held:
            assert self.arena.take(SIZE_BYTES) == 0, "it did not grow together"
            self.arena.give(0)

    def teardown(self) -> None:
        self.arena.close()


TestStretches = Stretches.TestCase
TestStretches.settings = settings(max_examples=60, stateful_step_count=40)


def test_both_sides_see_the_same() -> None:
    arena = Arena(1 << 16)
    try:
        theirs = seen(arena.fd)
        arena.view[100:103] = b"abc"
        assert theirs[100:103] == b"abc"
        theirs[200:203] = b"def"
        assert arena.view[200:203] == b"def"
    finally:
        arena.close()


VANDAL = """
import os, fcntl, sys
fd = int(sys.argv[1])
for act in (lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 1 << 30),
            lambda: os.posix_fallocate(fd, 0, 1 << 24),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)):
    try:
        act()
    except OSError as error:
        print(error.errno)
    else:
        print("done")
"""


def test_a_child_cannot_cut_or_lock_the_memory_under_the_agent() -> None:
    arena = Arena(1 << 20)
    try:
        arena.view[-1] = 7
        command = [sys.executable, "-c", VANDAL, str(arena.fd)]
        said = subprocess.run(
            command, pass_fds=[arena.fd], capture_output=True, text=True, check=True
        ).stdout
        assert said.split() == ["1"] * 4  # EPERM
        assert arena.view[-1] == 7  # SIGBUS, had it been cut
        arena.view[:] = bytes(1 << 20)
    finally:
        arena.close()


def test_closed_it_leaves_neither_descriptor_nor_mapping() -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("holdfast-arena")

    before = psutil.Process().num_fds(), maps()
    arenas = [Arena(1 << 20) for _ in range(20)]
    assert maps() == before[1] + 20
    for arena in arenas:
        arena.view[:1] = b"x"
        arena.close()
    assert (psutil.Process().num_fds(), maps()) == before


def test_pages_that_nobody_needs_are_given_back() -> None:
    arena = Arena(1 << 20)
    try:
        theirs = seen(arena.fd)
        first, second = arena.take(1 << 18), arena.take(1 << 18)
        assert (first, second) == (0, 1 << 18)
        arena.view[: 1 << 19] = b"x" * (1 << 19)
        assert os.fstat(arena.fd).st_blocks * 512 == 1 << 19
        arena.give(1 << 18)
        arena.trim()
        assert os.fstat(arena.fd).st_blocks * 512 == 1 << 18
        assert theirs[: 1 << 18] == b"x" * (1 << 18), "what is held was lost"
        assert theirs[1 << 18 : 1 << 19] == bytes(1 << 18)
        arena.give(0)
        arena.trim()
        assert os.fstat(arena.fd).st_blocks == 0
    finally:
        arena.close()
