"""A supervisor that does to an agent what systemd does by the unit that ships.

It hears sd_notify; an agent that has begun and is not fed for WATCHDOG_S gets SIGABRT, and SIGKILL
ABORT_S later; one that ends by a fault is started again after RESTART_S. Whatever it saw it keeps,
with the time.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

WATCHDOG_S, ABORT_S, RESTART_S = 30.0, 10.0, 2.0
LOOK_S = 0.05
NO_RESTART = (0, 78)  # RestartPreventExitStatus
PIPE_BYTES = 1 << 16


class Saw(NamedTuple):
    """What was seen, and when (CLOCK_MONOTONIC)."""

    at_s: float
    what: str


class Unit:
    """An agent as a service."""

    def __init__(
        self, folder: Path, command: Sequence[str], environment: Mapping[str, str], cwd: Path
    ) -> None:
        self.saw: list[Saw] = []
        self.ready = threading.Event()
        self.reads = True  # what the agent says on standard error
        self._command = command
        self._log = folder / "agent.log"
        self._cwd = cwd
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        name = f"holdfast-faults-{os.getpid()}-{self._heard.fileno()}"
        self._heard.bind(f"\0{name}")  # a path may be too long
        self._environment = {
            **environment,
            "NOTIFY_SOCKET": f"@{name}",
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        self._said, self._pipe = os.pipe()
        os.set_blocking(self._said, False)
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def pid(self) -> int:
        """The agent's, of its present life."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, and watch over it."""
        self._begin()
        self._thread.start()

    def stop(self) -> None:
        """End all of it."""
        self._over.set()
        self._thread.join()
        assert self._process
        self._process.kill()
        self._process.wait()
        self._heard.close()
        os.close(self._said)
        os.close(self._pipe)

    def fill(self) -> None:
        """Nobody reads any more what the agent says, and there is no room for more."""
        self.reads = False
        os.set_blocking(self._pipe, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self._pipe, b"\n" * PIPE_BYTES)
        with suppress(BlockingIOError):
            while True:
                os.write(self._pipe, b"\n")
        os.set_blocking(self._pipe, True)

    def _begin(self) -> None:
        self.ready.clear()
        self._fed_s = self._aborted_s = 0.0
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._pipe,
            stderr=self._pipe,
            env={**os.environ, **self._environment},
            cwd=self._cwd,
        )

    def _run(self) -> None:
        ended_s = 0.0
        while not self._over.wait(LOOK_S):
            self._listen()
            self._read()
            assert self._process
            status, now_s = self._process.poll(), time.monotonic()
            if status is None:
                self._watch(now_s)
            elif not ended_s:
                ended_s = now_s
                self._note(f"the agent ended: {_named(status)}")
            elif now_s - ended_s >= RESTART_S and status not in NO_RESTART:
                ended_s = 0.0
                self._begin()

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            while said := self._heard.recv(4096).decode():
                if said.startswith("READY=1"):
                    self.ready.set()
                if said.startswith(("READY=1", "WATCHDOG=1")):
                    self._fed_s = time.monotonic()
                if said.startswith("STOPPING=1"):
                    self._fed_s = 0.0

    def _read(self) -> None:
        if self.reads:
            with suppress(BlockingIOError), self._log.open("ab") as log:
                while said := os.read(self._said, PIPE_BYTES):
                    log.write(said)

    def _watch(self, now_s: float) -> None:
        assert self._process
        if self._aborted_s:
            if now_s - self._aborted_s >= ABORT_S:
                self._process.kill()
        elif self._fed_s and now_s - self._fed_s >= WATCHDOG_S:
            self._aborted_s = now_s
            self._note("not fed: SIGABRT")
            for sign in (signal.SIGABRT, signal.SIGCONT):
                self._process.send_signal(sign)

    def _note(self, what: str) -> None:
        self.saw.append(Saw(time.monotonic(), what))


def _named(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
