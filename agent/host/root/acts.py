"""What the verbs do. Nothing goes through a shell; every word but a mode's number is fixed here.

A program runs beside the daemon, which waits for none of them (daemon.py): a nvpmodel that hangs
holds up no reset.
"""

import math
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from agent.host.root.forms import Nvpmodel, Order, Reset, Slots, cut

# Documentation/admin-guide/sysrq.rst: sync all, remount all read-only, reset without more ado. The
# first two are done by the kernel on its own time, and on a dead disk never: nobody waits for that.
SYSRQ = ((b"s", 2.0), (b"u", 2.0), (b"b", 0.0))  # seconds after each
PROGRAM_S_MAX = 20.0
SAID_BYTES_MAX = 4096
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)


class Ways(NamedTuple):
    """How this machine does it; tests pass their own."""

    sysrq: Path
    reboot: Sequence[str]
    nvpmodel: Sequence[str]
    slots: Sequence[str]
    build: Sequence[str]


def of_this_machine() -> Ways:
    """The real ones."""
    systemd = _SYSTEMD_RUNS.is_dir()
    reboot = ("/usr/bin/systemctl", "--no-block", "reboot") if systemd else ("/sbin/reboot",)
    slots: tuple[str, ...] = ("/usr/lib/holdfast/slots.sh", "/opt/holdfast")
    if systemd:
        slots = (slots[0], "--tell", "/usr/bin/systemctl", slots[1])
    # In a unit of its own, which may take minutes, and more memory than this daemon has.
    build = ("/usr/bin/systemctl", "--no-block", "start", "holdfast-build.service")
    nvpmodel = ("/usr/sbin/nvpmodel", "-m")
    return Ways(Path("/proc/sysrq-trigger"), reboot, nvpmodel, slots, build)


class Program:
    """A program at work: `fd` becomes readable when it has ended."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises OSError."""
        self.until_s = time.monotonic() + PROGRAM_S_MAX
        self._name = argv[0]
        said = os.memfd_create("said")  # no pipe that somebody must read, no disk that may be full
        try:
            self._pid = os.posix_spawn(
                argv[0],
                [*argv],
                _ENVIRONMENT,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, said, 1),
                    (os.POSIX_SPAWN_DUP2, said, 2),
                ],
                setsid=True,
                setsigmask=[],
            )
            self.fd = os.pidfd_open(self._pid)
        except OSError:
            os.close(said)
            raise
        self._said = said

    def ended(self) -> str:
        """What it said, once it has ended. Raises OSError where it failed."""
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        said = self._told()
        os.close(self._said)
        os.close(self.fd)
        if status:
            raise OSError(f"{self._name} ended with status {status}: {said or 'without a word'}")
        return said or f"{self._name} did it"

    def kill(self) -> str:
        """End it and all that it has started; what it said. It may yet take its time to end."""
        self.until_s = math.inf
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        return self._told()

    def _told(self) -> str:
        end = max(os.fstat(self._said).st_size - SAID_BYTES_MAX, 0)
        return cut(os.pread(self._said, SAID_BYTES_MAX, end).decode(errors="replace"))


def argv_of(order: Order, ways: Ways) -> list[str]:
    """The program of an order; of a reset there is none."""
    if isinstance(order, Nvpmodel):
        return [*ways.nvpmodel, str(order.mode)]
    if isinstance(order, Slots):
        return [*ways.build] if order.act == "build" else [*ways.slots, order.act]
    return [] if isinstance(order, Reset) else list(ways.reboot)


def would(order: Order, ways: Ways) -> str:
    """What an order would do. Raises OSError where it could not."""
    argv = argv_of(order, ways)
    what = argv[0] if argv else ways.sysrq
    # Of what the kernel says, not of the rights of a process that lacks root's capabilities.
    if not Path(what).exists():
        raise FileNotFoundError(2, os.strerror(2), str(what))
    return f"would run {' '.join(argv)}" if argv else f"would write s, u, b to {what}"


def reset(ways: Ways) -> None:
    """Reset the machine. Raises OSError where the kernel does not take it."""
    for letter, pause_s in SYSRQ:
        fd = os.open(ways.sysrq, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, letter)
        finally:
            os.close(fd)
        select.select([], [], [], pause_s)
