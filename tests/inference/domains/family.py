"""The processes of domains, among whatever else the tests have started."""

import psutil

WORKER = "agent.inference.worker"


def workers() -> list[psutil.Process]:
    """Those of this process."""
    return [one for one in psutil.Process().children(recursive=True) if _is_worker(one)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER in process.cmdline()
    except psutil.NoSuchProcess:  # a zombie too
        return False
