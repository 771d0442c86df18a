"""A device's slots, with versions as small as can be: what is tested is which of them runs.

Real are slots.sh, the signed package, root's check of it, and the processes: the agent is a process
of its own (forked, so that a hundred of them cost little), and so is root's builder. Played are
systemd, which begins the agent again until it is quiet, the journal, which is a file, and pip.
"""

import asyncio
import hashlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from agent.clock import Clock
from agent.errors import HoldfastError, NotNow
from agent.health.conditions import Conditions
from agent.host.root.client import RootRefused
from agent.host.root.forms import Order
from agent.host.root.forms import Slots as SlotsOrder
from agent.host.slots import build
from agent.host.slots.build import Builder
from agent.host.slots.layout import Slot, Slots
from agent.protocol import signing
from agent.protocol.package import Machine, Manifest, pack
from agent.updates.slots import trial, update
from agent.updates.slots.probe import Answer
from agent.updates.slots.record import Before, Kept
from agent.updates.slots.trial import Trial
from agent.updates.slots.update import Outcome, Updating
from tests.outside import DEADLINE_S, ROOT

SCRIPT = ROOT / "provisioning" / "slots.sh"
KEY = signing.Key(bytes(range(32)))
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OLD, NEW = "1.0", "1.1"
AGAIN = 80


class QuickBuilder(Builder):
    """All of root's, but for the environment itself."""

    def _make(self, slot: Path, manifest: Manifest, wheels: Path) -> None:
        (slot / "slot.json").unlink(missing_ok=True)
        shutil.rmtree(slot, ignore_errors=True)
        version(slot, manifest.version, whole=False)


class Fetched(NamedTuple):
    """What a fetch leaves."""

    path: str
    version: str
    digest: str


def fetched(path: Path, number: str = NEW) -> Fetched:
    return Fetched(str(path), number, hashlib.sha256(path.read_bytes()).hexdigest())


def version(slot: Path, number: str, *, whole: bool = True) -> None:
    """As an installer leaves one."""
    (slot / "bin").mkdir(parents=True)
    (slot / "bin" / "holdfast").write_text("#!/bin/sh\n")
    (slot / "bin" / "holdfast").chmod(0o755)
    (slot / "number").write_text(number)
    if whole:
        (slot / "slot.json").write_bytes(msgspec.json.encode(Slot(number)))


def wheel(folder: Path, number: str = NEW, files: dict[str, str] | None = None) -> Path:
    """One that pip takes."""
    name = f"holdfast-{number}"
    info = f"{name}.dist-info"
    parts = {
        "small.py": f"def main():\n    print('{number}')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: holdfast\nVersion: {number}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nholdfast = small:main\n",
        f"{info}/RECORD": "",
        **(files or {}),
    }
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        for one, text in parts.items():
            made.writestr(one, text)
    return path


def package(
    folder: Path,
    number: str = NEW,
    key: signing.Key = KEY,
    python: str = PYTHON,
    machine: Machine = "any",
    files: dict[str, str] | None = None,
) -> Path:
    """A signed one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"agent-{number}.tar"
    with path.open("wb") as out:
        pack(out, [wheel(folder, number, files)], number, python, machine, key)
    return path


class Device:
    """`opt` is /opt/holdfast, `state` the unit's folder."""

    def __init__(self, folder: Path) -> None:
        self.opt, self.state = folder / "opt", folder / "state"
        self.keys = folder / "update.keys"
        folder.mkdir(exist_ok=True)
        self.keys.write_text(f"# who makes versions\n{KEY.public}  # here\n")
        self.state.mkdir(parents=True)
        version(self.opt / "slots" / "a", OLD)
        (self.opt / "venv").symlink_to("slots/a")

    @property
    def linked(self) -> str:
        return (self.opt / "venv").resolve().name

    @property
    def runs(self) -> str:
        """Its number."""
        return (self.opt / "venv" / "number").read_text()

    def slots(self) -> Slots:
        """As the agent of the version that is linked sees them."""
        return Slots(self.opt, self.linked)

    def sh(self, *words: str, path: str = "", tell: str = "") -> subprocess.CompletedProcess[str]:
        told = ["--tell", tell] if tell else []
        return subprocess.run(
            ["sh", str(SCRIPT), *told, str(self.opt), *words],
            env={"PATH": f"{path}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            umask=0o077,  # the root daemon's
        )


class Faults(NamedTuple):
    """What goes wrong: `refuses`: what root does not do; `dead`: the new version ends at once;
    `ill`: it is never well; `fails`: it does not pass its own test."""

    refuses: str = ""
    dead: bool = False
    ill: bool = False
    fails: bool = False


class Points:
    """The instants at which a process may die: counted over all processes of a case."""

    def __init__(self, kill_at: int = -1) -> None:
        self._seen = mmap.mmap(-1, 8)  # shared with those that are forked
        self._kill_at = kill_at

    @property
    def count(self) -> int:
        return int.from_bytes(self._seen[:8], "little")

    def pass_one(self) -> None:
        number = self.count
        self._seen[:8] = (number + 1).to_bytes(8, "little")
        if number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Root:
    """holdfast-root: it does what was ordered whether or not who has ordered it still lives."""

    def __init__(self, device: Device, faults: Faults, points: Points) -> None:
        self._device, self._faults, self._points = device, faults, points

    async def ask(self, order: Order) -> str:
        assert isinstance(order, SlotsOrder)
        self._points.pass_one()
        if order.act == self._faults.refuses:
            raise RootRefused(f"{order.act}: it does not work", "look")
        if order.act == "build":
            fork(self._build)  # systemd's: not waited for
            said = ""
        else:
            done = self._device.sh(order.act)
            if done.returncode:
                raise RootRefused(done.stderr)
            said = done.stdout
        self._points.pass_one()
        return said

    def _build(self) -> int:
        build.Builder = QuickBuilder  # type: ignore[misc]
        place = self._device.state / "update" / "package"
        words = ("--folder", self._device.opt, "--package", place, "--keys", self._device.keys)
        return build.main([str(one) for one in words])


class Call:
    """The journal's side of a command, in a file."""

    def __init__(self, device: Device, points: Points, id: str) -> None:
        self.id = id
        self._place, self._points = device.state / f"journal-{id}.json", points

    def ended(self) -> dict[str, Any] | None:
        return msgspec.json.decode(self._place.read_bytes()) if self._place.exists() else None

    async def note(self, step: str) -> None:
        """Only told to people."""
        self._points.pass_one()

    def end(self, **result: str) -> None:
        assert not self._place.exists(), "one result"
        self._points.pass_one()
        fresh = self._place.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(result))
        fresh.replace(self._place)
        self._points.pass_one()


class CountedKept(Kept):
    """The record, with an instant before and behind each write."""

    points: Points

    async def _keep(self, record: Any) -> None:
        self.points.pass_one()
        await super()._keep(record)
        self.points.pass_one()


Ordered = Callable[[Updating, Call], Awaitable[Outcome]]


class Play:
    """One command, from its acceptance until the device is quiet."""

    def __init__(
        self,
        device: Device,
        order: Ordered,
        faults: Faults,
        points: Points,
        id: str = "roll-1",
    ) -> None:
        self.device, self._order, self._faults, self.points = device, order, faults, points
        self._id = id
        self.starts: list[str] = []  # the numbers of the versions that were begun

    def until_quiet(self) -> dict[str, Any]:
        """systemd: begins it again and again; the command's result."""
        call = Call(self.device, self.points, self._id)
        for _ in range(12):
            done = self.device.sh("start")
            assert done.returncode == 0, done.stderr
            number = self.device.runs
            self.starts.append(number)
            _, status = os.waitpid(fork(lambda: self._run(number)), 0)  # noqa: B023 (at once)
            code = os.waitstatus_to_exitcode(status)
            if code == 0 and self.device.slots().trial() is None:
                result = call.ended()
                assert result, "it ended without a word"
                return result
            assert code in (0, AGAIN, 1, -signal.SIGKILL), code
        raise AssertionError(f"it is never quiet: {self.starts}")

    def _run(self, number: str) -> int:
        """The agent's process."""
        if self._faults.dead and number != OLD:
            return 1
        trial.LOOK_S = trial.SETTLE_S = trial.AGAIN_S = update.LOOK_S = 0.01
        return asyncio.run(self._agent(number))

    async def _agent(self, number: str) -> int:
        ends: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        slots, clock = self.device.slots(), Clock()
        CountedKept.points = self.points
        kept = CountedKept(self.device.state / "update.json", clock)
        root = Root(self.device, self._faults, self.points)
        restart = lambda why: None if ends.done() else ends.set_result(why)  # noqa: E731
        updating = Updating(slots, root, kept, self._asked, Before, restart, number)
        ill = self._faults.ill and number != OLD
        stays = number == OLD or not (ill or self._faults.refuses == "confirm")
        proves = Trial(
            *(slots, root, kept, lambda _: "it is ill" if ill else "", restart),
            *(Conditions(clock), clock, number, DEADLINE_S if stays else 0.1),
        )
        work = asyncio.gather(proves.run(), self._ordered(updating))
        await asyncio.wait([asyncio.ensure_future(work), ends], return_when="FIRST_COMPLETED")
        if ends.done():
            return AGAIN
        await work
        return 0

    async def _ordered(self, updating: Updating) -> None:
        call = Call(self.device, self.points, self._id)
        if call.ended():
            return
        go_on = updating.began(call)
        try:
            outcome = await (updating.resume(call) if go_on else self._order(updating, call))
        except HoldfastError as error:
            call.end(state="failed", message=str(error))
        else:
            call.end(state="succeeded", version=outcome.version, former=outcome.former)

    async def _asked(self, slot: Path) -> Answer:
        self.points.pass_one()
        if self._faults.fails:
            raise NotNow("it does not pass its own test")
        return Answer((slot / "number").read_text(), 14, 14)


def fork(act: Callable[[], int]) -> int:
    """Have a process of its own do it; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os._exit(act())
    except BaseException:  # noqa: BLE001 (a fork must not return into the test's frames)
        traceback.print_exc()
        os._exit(99)


def children() -> set[int]:
    """The processes of this one; other tests may have some that stay."""
    return {one.pid for one in psutil.Process().children()}


def reap(but: set[int]) -> None:
    """Wait for builders that were left to themselves."""
    for pid in children() - but:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
