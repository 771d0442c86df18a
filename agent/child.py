"""What every child process of the agent does first."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


def live_with(parent: int) -> None:
    """Die when the agent, process `parent`, dies, even inside a call that hangs; ignore Ctrl-C.

    Ctrl-C reaches the whole process group, and it is the agent that decides what then happens.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(0)


def be_named(name: str) -> None:
    """What `ps -o comm` and `top` show: up to 15 characters."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def adopt(*, orphans: bool) -> None:
    """Whether what a child leaves behind is this process's own child from now on (a subreaper)."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(orphans))


def _prctl(option: int, value: object) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
