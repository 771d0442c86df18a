"""Real children to confine, and what the kernel says of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host.groups import places

MIB = 1 << 20

# Does what it is told, one line each, and says what came of it.
_PROGRAM = """
import sys, threading
kept = []
def spin():
    while True: pass
print("up", flush=True)
for row in sys.stdin:
    verb, _, number = row.strip().partition(" ")
    try:
        if verb == "take":
            kept.append(b"x" * int(number))
        elif verb == "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        elif verb == "spin":
            print("done", flush=True)
            spin()
        print("done", flush=True)
    except MemoryError:
        print("refused", flush=True)
"""


class Child:
    """A process that takes memory, starts threads or keeps a processor busy, as it is told."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid
        assert self._read() == "up"

    def tell(self, what: str) -> str:
        """What came of it: done, refused, or nothing, if it died."""
        assert self._process.stdin
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._read()

    def status(self) -> int:
        """How it ended."""
        return self._process.wait(30)

    def end(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@contextmanager
def children(count: int) -> Iterator[list[Child]]:
    """So many; none is left."""
    made: list[Child] = []
    try:
        made += (Child() for _ in range(count))
        yield made
    finally:
        for one in made:
            one.end()


def ran_s(pid: int) -> float:
    """Processor time it has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def v1_places() -> dict[str, Path]:
    """This process's groups by controller, in v1."""
    found = places(Path("/"))
    return {c: place.folder for place in found for c in place.mount.controllers}


def needs_v1() -> None:
    """Skip where v1's hierarchies are not writable."""
    found = v1_places()
    missing = [
        one
        for one in ("cpu", "cpuset", "memory", "pids")
        if one not in found or not os.access(found[one], os.W_OK)
    ]
    if missing:
        pytest.skip(f"no writable cgroup v1 hierarchy has {', '.join(missing)} here")
