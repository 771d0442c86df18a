"""What every child process of the agent does first."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def live_with(parent: int) -> None:
    """Die when the agent, process `parent`, dies, even inside a call that hangs; ignore Ctrl-C.

    Ctrl-C reaches the whole process group, and it is the agent that decides what then happens.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(0)
