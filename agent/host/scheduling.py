"""What the kernel's scheduler and its out-of-memory killer think of a child; needs no rights."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.host.limits import Class

_POLICIES: dict[Class, int] = {
    "realtime": os.SCHED_OTHER,
    "interactive": os.SCHED_OTHER,
    # Whoever else wakes up takes the processor from it at once, and beside others it keeps
    # 3 parts of 1024: little, but never nothing.
    "batch": os.SCHED_IDLE,
}
_NICE: dict[Class, int] = {"realtime": 0, "interactive": 5, "batch": 19}
# Above the agent, so that the kernel ends a child before it.
_OOM: dict[Class, int] = {"realtime": 300, "interactive": 600, "batch": 900}
_OOM_MAX = 1000


def classify(pid: int, klass: Class) -> None:
    """Give all threads of a process its class; those that they start later have it too.

    Raises ProcessLookupError: it is gone; PermissionError: going up again takes a right.
    """
    for thread in threads(pid):
        with suppress(ProcessLookupError):  # the thread; the process's end is seen by `threads`
            os.sched_setscheduler(thread, _POLICIES[klass], os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, _NICE[klass])


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Let a process, with all its threads, run on these processors. Raises as `classify`."""
    for thread in threads(pid):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


def expose(pid: int, klass: Class) -> None:
    """Have the kernel end it before the agent, and batch work first, when memory is short.

    Raises ProcessLookupError: it is gone; PermissionError: it is not ours.
    """
    own = int(Path("/proc/self/oom_score_adj").read_text())
    score = min(_OOM_MAX, max(own, 0) + _OOM[klass])
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error


def threads(pid: int) -> Iterator[int]:
    """Each thread of a process, until a look finds no new one: a new one is as its maker was.

    Raises ProcessLookupError: the process is gone.
    """
    seen: set[int] = set()
    while True:
        try:
            found = {int(one.name) for one in Path(f"/proc/{pid}/task").iterdir()} - seen
        except FileNotFoundError as error:
            raise ProcessLookupError(pid) from error
        if not found:
            return
        yield from found
        seen |= found
