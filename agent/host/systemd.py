"""What systemd is told: sd_notify(3), datagrams to the socket that NOTIFY_SOCKET names.

Without systemd there is no socket, and nothing is told to anybody.
"""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("systemd")
TEXT_CHARS_MAX = 400  # of a status: systemctl shows it on one line


class Systemd:
    """The unit's own line to its supervisor."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """`environment` is what systemd started this process with."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watched_us = _watched_us(environment)
        self._said = ""
        self._failed = False

    @property
    def there(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """WatchdogSec of the unit; None: systemd does not watch this process."""
        return self._watched_us / 1e6 if self._watched_us else None

    def ready(self) -> None:
        """The start is over: units that come after this one may start."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """The end has begun; the watchdog's time is over."""
        self._tell("STOPPING=1")

    def feed(self) -> None:
        """All is well. To be called within every half of `watchdog_s`."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; told when it has changed."""
        line = " ".join(text.split())[:TEXT_CHARS_MAX]
        if line != self._said:
            self._said = line
            self._tell(f"STATUS={line}")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        path = self._address
        where = f"\0{path[1:]}" if path.startswith("@") else path  # of the abstract namespace
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.setblocking(False)
                line.sendto(state.encode(), where)
        except OSError as error:  # systemd is being restarted, or its queue is full: told again
            if not self._failed:
                log.warning("systemd was not told %s: %s", state.partition("=")[0], error)
            self._failed = True
        else:
            self._failed = False


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the unit may keep what outlives it: its first StateDirectory= (systemd.exec(5)).

    None: it is not a unit that has one.
    """
    first = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first else None


def _watched_us(environment: Mapping[str, str]) -> int:
    """WATCHDOG_USEC, where it is for this process (WATCHDOG_PID); 0: not watched."""
    said, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not said.isdigit() or (pid and pid != str(os.getpid())):
        return 0
    return int(said)
