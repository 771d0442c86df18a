"""The machine: QEMU without hardware's help, an emulated i6300esb, and hands on it from outside.

`-accel tcg`: it works wherever there is QEMU. The root is thrown away at each end, but where it is
a disk of its own; what is to stay lies on the data disk. Nothing here asserts a time: under
emulation a second is what the host gives.
"""

import ctypes
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.appliance.image.build import Image
from tests.appliance.image.layers import archive
from tests.outside import free_port, until

BOOT_S = 600.0  # until the agent answers: a boot after a reset takes long, under emulation
ANSWER_S = 120.0
PAUSE_S = 1.0
BOOTED = ("running", "degraded")  # no job of systemd's waits any more
STARTED = "Started holdfast.service"
TROUBLE = (OSError, http.client.HTTPException, ValueError)
_PDEATHSIG = 1
_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=3 rw no_timer_check tsc=reliable mitigations=off nokaslr "
    "random.trust_cpu=on cryptomgr.notests net.ifnames=0 systemd.show_status=no"
)
_FIXED = (
    *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"),
    *("-nodefaults", "-no-user-config", "-display", "none"),
    *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"),
    *("-device", "i6300esb", "-action", "watchdog=reset"),
)


class Machine:
    """Use it with `with powered(machine)`, or `power_on` and `cut`."""

    def __init__(
        self, image: Image, folder: Path, data: str | None, root: str | None = None
    ) -> None:
        """`data` is what QEMU has for the data disk, a file or a URL; None: there is none. `root`
        likewise for that of the system; None: a throw-away copy of the image's."""
        self.console = folder / "console.log"
        self.arguments = "panic=0"  # a machine that panicked stands still
        self.files: dict[str, str] = {}  # laid over the root at each boot
        self._image = image
        self._folder = folder
        self._data = data
        self._root = root
        self._qmp = folder / "qmp"
        self._process: subprocess.Popen[bytes] | None = None
        self._events: list[dict[str, Any]] = []

    def power_on(self) -> None:
        """Begin; it is not up yet."""
        self.door_port, self._hand_port = free_port(), free_port()
        self._events = []
        self._starts = self.starts
        with (self._folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stderr=log, preexec_fn=_die_with_parent
            )
        until(self._listens, "QEMU takes orders")

    def cut(self) -> None:
        """The power goes: nothing in it gets another instruction."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    @property
    def starts(self) -> int:
        """How often systemd has started the agent, as the console says: that costs it nothing."""
        return self.said().count(STARTED)

    def begun(self, after: int, deadline_s: float = BOOT_S) -> None:
        """Wait until the agent has been started more often than `after` times."""
        self.wait(lambda: self.starts > after, "the agent is started", deadline_s)

    def up(self) -> dict[str, Any]:
        """Wait until the agent answers, and all that must move moves; its status."""
        self.begun(self._starts)
        found: dict[str, Any] = self.wait(self._status, "the agent answers")
        return found

    def handy(self) -> None:
        """Wait until a shell answers, and all that starts at boot has been started."""
        self.wait(self._is_handy, "a shell answers")

    def _is_handy(self) -> bool:
        with suppress(*TROUBLE):
            return self.order("systemctl is-system-running || true", 20.0) in BOOTED
        return False

    def wait(self, question: Callable[[], Any], what: str, deadline_s: float = BOOT_S) -> Any:
        """As `until`, but rarely: whoever asks an emulated machine keeps it from its work."""
        end = time.monotonic() + deadline_s
        while not (answer := question()):
            assert time.monotonic() < end, f"not within {deadline_s} s: {what}\n{self.tail()}"
            time.sleep(PAUSE_S)
        return answer

    def _status(self) -> dict[str, Any]:
        assert self._process
        assert self._process.poll() is None, (self._folder / "qemu.log").read_text()
        with suppress(*TROUBLE):
            if self.ask("GET", "/api/v1/watchdog", limit_s=5.0)["fed"]:
                found: dict[str, Any] = self.ask("GET", "/api/v1/status", limit_s=10.0)
                return found
        return {}

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        limit_s: float = ANSWER_S,
    ) -> Any:
        """What the agent answers. Raises one of TROUBLE, ValueError for what is no 2xx."""
        headers = {"Content-Type": "application/octet-stream"}
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        line = http.client.HTTPConnection("127.0.0.1", self.door_port, timeout=limit_s)
        try:
            line.request(method, path, body, headers if body else {})
            answer = line.getresponse()
            content = answer.read()
        finally:
            line.close()
        if answer.status >= 300:
            raise ValueError(f"{method} {path}: {answer.status} {content.decode()}")
        return json.loads(content)

    def why(self) -> dict[str, Any]:
        """Why the agent began, by its own word, and what of its budgets is left."""
        found: dict[str, Any] = self.ask("GET", "/api/v1/watchdog")["start"]
        return found

    def order(self, script: str, limit_s: float = ANSWER_S) -> str:
        """What a shell in there says to a script, as root; raises ValueError where it fails."""
        with socket.create_connection(("127.0.0.1", self._hand_port), limit_s) as hand:
            hand.sendall(f"(set -e\n{script}\n) 2>&1; s=$?; echo; echo status $s; exit\n".encode())
            with hand.makefile() as answer:
                said, _, status = answer.read().rstrip("\n").rpartition("\n")
        said = said.removesuffix("\n")
        if status != "status 0":
            raise ValueError(f"{script}\n{said}\n{status}")
        return said

    def shout(self, script: str) -> None:
        """As `order`, where nobody may be left to answer."""
        with socket.create_connection(("127.0.0.1", self._hand_port), ANSWER_S) as hand:
            hand.sendall(f"{script}\n".encode())
            with suppress(OSError):
                hand.settimeout(5.0)
                hand.recv(1)

    @contextmanager
    def lines(self, command: str) -> Iterator[Iterator[str]]:
        """What a program in there says, line by line, for as long as it runs."""
        with socket.create_connection(("127.0.0.1", self._hand_port), ANSWER_S) as hand:
            hand.sendall(f"exec {command}\n".encode())
            with hand.makefile() as answer:
                yield (line.rstrip("\n") for line in _until_gone(answer))

    def python(self, program: str) -> str:
        """What a Python of the agent's own says, as root."""
        return self.order(f"/opt/holdfast/venv/bin/python -P - <<'END'\n{program}\nEND")

    def happened(self, name: str) -> int:
        """How often QEMU told of it since the power came: WATCHDOG, RESET."""
        return sum(one["event"] == name for one in list(self._events))

    def reset(self, before: int, deadline_s: float) -> None:
        """Wait until its watchdog has reset it more often than `before` times."""
        self.wait(lambda: self.happened("WATCHDOG") > before, "it is reset", deadline_s)

    def said(self) -> str:
        """All that its console says."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def tail(self) -> str:
        """The end of that."""
        return f"the console's end ({self.console}):\n{self.said()[-4000:]}"

    def _command(self) -> list[str]:
        program = shutil.which("qemu-system-x86_64")
        assert program
        net = ",".join(
            f"hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{inside}"
            for port, inside in ((self.door_port, 8080), (self._hand_port, 7000))
        )
        command = [program, *_FIXED, "-kernel", str(self._image.kernel)]
        command += ["-initrd", str(self._initrd()), "-append", f"{_ARGUMENTS} {self.arguments}"]
        if self._root:
            command += _drive("root", self._root, "cache=none,werror=report")
        else:
            command += _drive("root", str(self._image.root), "snapshot=on,cache=unsafe")
        if self._data:
            command += _drive("data", self._data, "cache=none,werror=report")
        command += ["-chardev", f"file,id=console,path={self.console},append=on"]
        command += ["-serial", "chardev:console", "-qmp", f"unix:{self._qmp},server=on,wait=off"]
        command += ["-netdev", f"user,id=net,{net}"]
        return [*command, "-device", "virtio-net-pci,netdev=net,romfile="]

    def _initrd(self) -> Path:
        """With an archive behind it that holds the files of this boot."""
        if not self.files:
            return self._image.initrd
        overlay, whole = self._folder / "overlay", self._folder / "initrd.gz"
        shutil.rmtree(overlay, ignore_errors=True)
        for name, content in self.files.items():
            place = overlay / "overlay" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        archive(overlay, whole)
        whole.write_bytes(self._image.initrd.read_bytes() + whole.read_bytes())
        return whole

    def _listens(self) -> bool:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(self._qmp))
        except OSError:
            line.close()
            return False
        line.sendall(b'{"execute": "qmp_capabilities"}\n')
        threading.Thread(target=self._follow, args=(line, self._events), daemon=True).start()
        return True

    def _follow(self, line: socket.socket, events: list[dict[str, Any]]) -> None:
        with line, line.makefile() as said, suppress(OSError):
            events.extend(one for row in said if "event" in (one := json.loads(row)))


@contextmanager
def powered(machine: Machine) -> Iterator[Machine]:
    """Whatever happens, no QEMU is left."""
    try:
        machine.power_on()
        yield machine
    finally:
        machine.cut()


def _drive(name: str, file: str, how: str) -> list[str]:
    """In this order they are /dev/vda, /dev/vdb."""
    drive = f"file={file},format=raw,if=none,id={name},{how}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _until_gone(lines: Iterable[str]) -> Iterator[str]:
    with suppress(OSError):  # the machine was cut
        yield from lines


def _die_with_parent() -> None:
    """A test that is killed leaves no machine behind."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
