"""A server under measurement: started, asked until it answers, read, and ended with all of it."""

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from msgspec import Struct

from bench.memory import memory_of

FIRST_S_MAX = 90.0  # from its start to its first answer, of the slowest
POLL_S = 0.01
END_S_MAX = 10.0
PORTS = (20_000, 32_000)  # below those that a kernel gives to clients


class Memory(Struct, frozen=True):
    """Of a server and its children, in MiB; `pss` shares out what they map in common."""

    pss: float
    anonymous: float


def free_port() -> int:
    """A port on which nobody listens, nor on the next."""
    while True:
        port = random.randrange(*PORTS, 2)
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port


class Server:
    """One that runs; `port` is where it answers."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port
        self._began_s = time.monotonic()

    def first(self, request: bytes) -> float:
        """Ask again and again until there is a 200: seconds since the server was started."""
        why: object = "it was never asked"
        while (now_s := time.monotonic() - self._began_s) < FIRST_S_MAX:
            if self.process.poll() is not None:
                raise ChildProcessError(f"the server ended with {self.process.returncode}")
            try:
                status, body = self._ask(request)
            except (OSError, http.client.HTTPException) as error:
                why = error
            else:
                if status == 200:
                    return time.monotonic() - self._began_s
                why = f"{status} {body[:300]!r}"
            time.sleep(POLL_S)
        raise TimeoutError(f"no 200 within {now_s:.0f} s; the last time: {why}")

    def memory(self) -> Memory:
        """As it is now."""
        family = [self.process.pid]
        family += [one.pid for one in psutil.Process(self.process.pid).children(recursive=True)]
        found = [memory_of(pid) for pid in family]
        return Memory(sum(one.pss for one in found), sum(one.anonymous for one in found))

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        with socket.create_connection(("127.0.0.1", self.port), FIRST_S_MAX) as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()


@contextmanager
def running(command: Sequence[str | Path], port: int) -> Iterator[Server]:
    """The command as a server, in a process group of its own; what it said is shown if it fails."""
    with tempfile.TemporaryFile(prefix="holdfast-") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield Server(process, port)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As an operator would; then whatever of its group is left."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S_MAX)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
