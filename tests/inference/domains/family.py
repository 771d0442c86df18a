"""The processes of domains, among whatever else the tests have started."""

import os
from contextlib import suppress

import psutil

WORKER = "agent.inference.worker"


def workers() -> list[int]:
    """Children of this process that are workers, or what is left of one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            left = child.status() == psutil.STATUS_ZOMBIE and child.ppid() == os.getpid()
            if left or WORKER in child.cmdline():
                found.append(child.pid)
    return found
