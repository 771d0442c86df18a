"""What tests need from outside the agent: waiting, services, a real broker, a real agent."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import pytest
import yaml

from agent.cli.client import Client
from agent.errors import AgentSilent, HoldfastError
from tests.api.checked import whole

ROOT = Path(__file__).parent.parent
HOLDFAST = Path(sys.executable).with_name("holdfast")
DEADLINE_S = 150.0  # a machine may give us a fifth of its processors
LOG_LINES = 60  # of an agent, shown where its test failed
T = TypeVar("T")


def until(question: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Ask until the answer is true, less and less often; fail with `what` at the deadline."""
    end, pause_s = time.monotonic() + deadline_s, 0.005
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(pause_s)
        pause_s = min(0.05, 1.5 * pause_s)
    raise AssertionError(f"not within {deadline_s} s: {what}")


def alive(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of one until it is waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def program(name: str, package: str) -> str:
    """A service's program; absent, its tests are skipped on a laptop and fail in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed: apt-get install {package}")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


_PLACE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PLACES = 8


def _ports() -> Iterator[int]:
    """Below the ephemeral ports: a client that tries again and again to reach one of those on this
    machine is one day given it as its own, connects to itself, and holds the port. Tests that run
    beside these have ports of their own; and all others come before one comes again, since what
    it was given to may not have begun to listen.
    """
    ports = list(range(20_000 + _PLACE % _PLACES, 32_000, _PLACES))
    random.Random().shuffle(ports)  # not the common one, which tests seed
    return itertools.cycle(ports)


_PORTS = _ports()


def free_port() -> int:
    """A TCP port nobody listens on now."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# As root, Mosquitto would become a user of its own, who may not read a test's folder.
_USER = "user root\n" if os.geteuid() == 0 else ""


class Mosquitto:
    """A real broker that can be killed and started again on its port."""

    def __init__(self, folder: Path, port: int | None = None, extra: str = "") -> None:
        self.port = port or free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / f"mosquitto-{self.port}.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n"
            f"max_inflight_messages 1000\n{_USER}{extra}"
        )
        self.command = [program("mosquitto", "mosquitto"), "-c", str(self._config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        until(self._listens, "mosquitto listens")

    @property
    def pid(self) -> int:
        """The broker's process id, once it was started."""
        assert self._process is not None
        return self._process.pid

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def dead(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def reload(self) -> None:
        """Have it read its access list again."""
        if self._process:
            self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class Checked(Client):
    """The command's client; each exchange is checked against the OpenAPI document."""

    def _answer(self, *request: Any) -> tuple[int, bytes]:
        status, body = super()._answer(*request)
        _, method, route, content = request
        kind = {"Content-Type": "application/json"}  # all that is known of the headers
        whole().check(method, route, content, status, kind, body, all_headers=False)
        return status, body


def hang(agent: Path, part: str) -> None:
    """Have a part of the agent at this socket stand still. It answers before that, but not always
    on a machine that stalls."""
    with contextlib.suppress(AgentSilent):
        Checked(agent).post("/api/v1/watchdog/test", {"part": part})


# Tests of other things than safe mode do not end in it; and no watchdog of this machine is asked.
KILLED_OFTEN = {"safe_mode_after": 100, "device": "/dev/none"}


class Device:
    """A real agent in a process of its own, on a configuration in a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.socket = folder / "holdfast.sock"
        self.store = folder / "var" / "holdfast.db"
        self.log = folder / "agent.log"
        self.config = folder / "config.yaml"
        whole = {
            "device_id": "device-under-test",
            "models": {"path": str(ROOT / "models")},
            "store": {"path": str(self.store)},
            "api": {"port": 0, "socket": str(self.socket)},
            "link": {"broker_url": "mqtt://127.0.0.1:1", "ack_from": "ingest"},
            "watchdog": KILLED_OFTEN,
            **settings,
        }
        self.config.write_text(yaml.safe_dump(whole))
        self.command = [str(HOLDFAST), "run", "--config", str(self.config)]
        self.said = self.log  # what goes to standard output
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log, self.said.open("ab") as said:
            self._process = subprocess.Popen(self.command, stdout=said, stderr=log, cwd=ROOT)
        until(lambda: self.dead() or self.answers(), "the agent answers")
        assert not self.dead(), self.log.read_text()

    @property
    def pid(self) -> int:
        """The agent's process id, once it was started."""
        assert self._process is not None
        return self._process.pid

    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def answers(self) -> bool:
        """Whether its socket serves."""
        with contextlib.suppress(HoldfastError):
            return bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        """The document behind `holdfast status --json`."""
        found: dict[str, Any] = Checked(self.socket).get("/api/v1/status")
        return found

    def ledger(self, stream: str) -> dict[str, Any]:
        """One stream's balance, zeros before its first record."""
        nothing = {"produced": 0, "delivered": 0, "held": 0, "dropped": {}}
        found: dict[str, Any] = self.status()["ledger"].get(stream, nothing)
        return found

    def told(self) -> str:
        """Whether it runs, and the end of its log."""
        state = (
            f"ended with {self._process.returncode}" if self.dead() and self._process else "runs"
        )
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"the agent in {self.folder} {state}; its log:", *lines[-LOG_LINES:]])

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        self._process.send_signal(sign)
        return self._process.wait(DEADLINE_S)


class Brake:
    """Slows a device's domain down to a tenth or less, so that a test can look while it works.

    The worker stands still most of the time, but never for so long that it seems to hang. A worker
    that takes its place is slowed down as soon as it is ready. Use it with `with`.
    """

    STILL_S = 0.1
    MOVING_S = 0.005

    def __init__(self, device: Device) -> None:
        self._device = device
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._released.is_set():
            if pid := self._ready_worker():
                with contextlib.suppress(ProcessLookupError):  # it was killed
                    self._slow_down(pid)
            self._released.wait(self.MOVING_S)

    def _ready_worker(self) -> int | None:
        """Not one that starts: it has a time limit for that, and nothing to hear yet."""
        with contextlib.suppress(HoldfastError):
            domain = self._device.status()["domains"]["audio"]
            return domain["pid"] if domain["ready"] else None
        return None

    def _slow_down(self, pid: int) -> None:
        try:
            while not self._released.is_set():
                os.kill(pid, signal.SIGSTOP)
                self._released.wait(self.STILL_S)
                os.kill(pid, signal.SIGCONT)
                self._released.wait(self.MOVING_S)
        finally:
            os.kill(pid, signal.SIGCONT)


class Runs(Protocol):
    """A process of a test."""

    def start(self) -> None: ...
    def kill(self) -> None: ...


@contextlib.contextmanager
def running(*things: Runs) -> Iterator[None]:
    """Start them in order; whatever happens, none is left behind. A failure shows their logs."""
    try:
        for thing in things:
            thing.start()
        yield
    except BaseException as error:
        for thing in things:
            if isinstance(thing, Device):
                error.add_note(thing.told())
        raise
    finally:
        for thing in things:
            thing.kill()


def holdfast(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [str(HOLDFAST), *arguments], capture_output=True, text=True, timeout=DEADLINE_S, cwd=cwd
    )


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command printed with --json."""
    return json.loads(done.stdout)
