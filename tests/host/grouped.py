"""Control groups (v1) that hold a process up from outside: a hundredth of a processor, or none.

A process that is frozen does not run, and no signal ends it before it thaws: to who waits for it
it is as one that sits in the kernel, in a driver that does not come back.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.host.children import v1_places
from tests.outside import until

_NUMBERS = itertools.count()


def needs_group(controller: str) -> None:
    """Skip where there is no such hierarchy of v1 that may be written."""
    place = v1_places().get(controller)
    if place is None or not os.access(place, os.W_OK):
        pytest.skip(f"no writable cgroup v1 hierarchy has {controller} here")


class Group:
    """A group that one process is put into, with all its threads, and out of again."""

    def __init__(self, controller: str, pid: int) -> None:
        self._pid = pid
        self._home = _home(controller, pid)
        self._folder = v1_places()[controller] / f"held-{os.getpid()}-{next(_NUMBERS)}"
        self._folder.mkdir()

    def write(self, name: str, value: object) -> None:
        """Set something."""
        (self._folder / name).write_text(str(value))

    def read(self, name: str) -> str:
        """As it is."""
        return (self._folder / name).read_text().strip()

    def enter(self) -> None:
        """Put it in."""
        self.write("cgroup.procs", self._pid)

    def leave(self) -> None:
        """Put it back where it was, if it lives; nothing is left."""
        with suppress(OSError):  # it has ended, or its home has
            (self._home / "cgroup.procs").write_text(str(self._pid))
        until(lambda: not self.read("cgroup.procs"), "nobody is in the group")
        self._folder.rmdir()


@contextmanager
def freezing(pid: int) -> Iterator[None]:
    """A process is frozen."""
    group = Group("freezer", pid)
    group.enter()
    try:
        group.write("freezer.state", "FROZEN")
        until(lambda: group.read("freezer.state") == "FROZEN", "it is frozen")
        yield
    finally:
        group.write("freezer.state", "THAWED")
        group.leave()


def _home(controller: str, pid: int) -> Path:
    """The group it is in."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path("/sys/fs/cgroup", controller, path.lstrip("/"))
    raise ValueError(f"no {controller} in the control groups of {pid}")
