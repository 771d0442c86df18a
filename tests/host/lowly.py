"""Runs as a user without rights, in a process of its own, so that what needs rights is refused."""

import ctypes
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

NOBODY = 65_534
_PR_SET_DUMPABLE = 4
T = dict[str, object]


def as_nobody(act: Callable[[], T], uid: int = NOBODY) -> T:
    """What `act` answers there. The process is forked: nobody may be unable to read Python."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without rights")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _drop(uid)
            os.write(writing, msgspec.json.encode(act()))
        except BaseException:  # noqa: BLE001 (a fork must not return into the test's frames)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        answer = answers.read()
    assert os.waitpid(pid, 0)[1] == 0, "see what it printed"
    found: T = msgspec.json.decode(answer)
    return found


def child(act: Callable[[], int], confine: Callable[[int], None]) -> int:
    """Fork one, confine it, let it act; how it ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        try:
            os._exit(act())
        except MemoryError:
            os._exit(REFUSED)
    confine(pid)
    os.close(reading)
    os.close(writing)  # it goes on
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


REFUSED = 3


def take(size_bytes: int) -> int:
    """Touches as much memory. Raises MemoryError."""
    return 0 if len(b"x" * size_bytes) == size_bytes else 1


def _drop(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # As of a process that was started by that user: its files in /proc are its own.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    assert Path("/proc/self").stat().st_uid == uid
