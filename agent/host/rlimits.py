"""What holds a child's memory where no control group does.

RLIMIT_DATA counts the writable private memory a process has asked for, and refuses more: malloc
fails, Python raises MemoryError, and a library that does not look for that ends. It does not count
mapped files and shared memory, and counts what was asked for and never touched, thread stacks among
it. RLIMIT_AS counts every address: CUDA reserves more of those than the machine has memory, and
every mapped model counts in full, so that no value of it lets a model load and stops a leak.
"""

import resource

NONE = resource.RLIM_INFINITY


def hold_memory(pid: int, bytes_max: int | None) -> None:
    """Limit what a process may ask for; None: what the agent itself may. It never counts back.

    Raises ProcessLookupError: it is gone; PermissionError: it is not ours.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
    own, _ = resource.getrlimit(resource.RLIMIT_DATA)
    soft = min((one for one in (bytes_max, own, hard) if one not in (None, NONE)), default=NONE)
    # The hard limit stays: to raise it again would take a right.
    resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
