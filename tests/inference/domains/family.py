"""The processes of domains, among whatever else the tests have started."""

from contextlib import suppress

import psutil

from agent.inference.wire import WORKER


def workers() -> list[int]:
    """Children of this process that are workers, or what is left of one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() == WORKER:
                found.append(child.pid)
    return found
