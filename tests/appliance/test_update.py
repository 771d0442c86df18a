"""A new version of the agent, under a real systemd: a good one stays, and each kind of a bad one is
left, whatever of the unit's own rules it runs into."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import VERSION
from agent.errors import HoldfastError
from agent.host.root.client import Root
from agent.host.root.forms import Slots as SlotsOrder
from agent.host.slots.layout import Slot, Slots
from agent.updates.slots.record import Record
from tests.appliance.native import booted
from tests.appliance.test_root import DAEMON, SOCKET
from tests.appliance.test_unit import LONG_S, SERVICE, UNIT, Unit
from tests.host.lowly import NOBODY
from tests.host.root.played import prepare
from tests.outside import ROOT, Checked, until
from tests.updates.rig import KEY, SCRIPT, package

pytestmark = pytest.mark.appliance  # minutes: by hand

TRIAL, BUILD = "holdfast-trial.service", "holdfast-build.service"
SITE = next(Path(sys.prefix).glob("lib/python*/site-packages"))
HERE = {
    SERVICE: """
[Service]
ExecStartPre=-+{script} --tell /usr/bin/systemctl {folder}/opt start
TimeoutStartSec={start_s}
""",
    TRIAL: """
[Service]
ExecStart=
ExecStart={script} --tell /usr/bin/systemctl {folder}/opt watch {watch_s}
ReadWritePaths=
ReadWritePaths={folder}
ProtectHome=no
""",
    DAEMON: """
[Service]
ExecStart=
ExecStart={python} -P -m tests.updates.rooted {folder} --user nobody
Environment=PYTHONPATH={root}
ReadWritePaths=
ReadWritePaths={folder}
PrivateTmp=no
PrivateDevices=no
ProtectHome=no
""",
    BUILD: """
[Service]
ExecStart=
ExecStart={folder}/opt/venv/bin/python -I -m agent.host.slots.build --folder {folder}/opt \\
    --package {folder}/update/package --keys {folder}/update.keys
ReadWritePaths=
ReadWritePaths={folder}
PrivateTmp=no
PrivateDevices=no
ProtectHome=no
ProtectKernelLogs=no
""",
    SOCKET: "[Socket]\nSocketGroup=nogroup\n",
}
# The first words of each are those of a script in the slot, whose interpreter comes before.
BAD = {
    "ends at once": "import",
    "hangs before it is ready": "import time; time.sleep(10_000)",
    "takes no configuration": "import sys; sys.exit(78)",
    "has no interpreter": "",
}
READY = """
import os, socket, time
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
line.send(b"READY=1")
"""
BAD["hangs once it is ready"] = f"{READY}time.sleep(10_000)"
DEAF = f"""{READY}
while True:
    line.send(b"WATCHDOG=1")
    time.sleep(1)
"""
# The agent as it is, but that none of its workers begins: only its trial can tell.
MUTE = """
import sys
from agent.cli import run
from agent.inference.domains import zygote

zygote.ZYGOTE = (sys.executable, "-c", "")
sys.exit(run.main(sys.argv[sys.argv.index("--config") + 1]))
"""
# The agent as it is, to whom somebody gives an order once it runs.
ORDERED = """
import sys
from agent import app
from agent.cli import run

class Call:
    id = "x"
    async def note(self, step):
        pass

class Ordered(app.App):
    def _loops(self):
        return [*super()._loops(), self._roll_back]

    async def _roll_back(self):
        await self.slots.updating.rollback(Call())

app.App = Ordered
sys.exit(run.main(sys.argv[sys.argv.index("--config") + 1]))
"""
REAL = "from agent.cli.command import main; main()"


class Slotted(Unit):
    """The agent in slot a, and another version in b, which is linked, on trial."""

    def __init__(
        self,
        folder: Path,
        script: str,
        start_s: int = 200,
        watch_s: int = 3600,
        orders: str = "",
        **settings: object,
    ) -> None:
        """`orders`: instead, the agent in slot a switches to the other one itself."""
        opt = folder / "opt"
        super().__init__(folder, opt / "venv" / "bin" / "holdfast")
        self.settings |= {"watchdog": {"root_socket": "/run/holdfast-root.sock"}, **settings}
        self.config.write_bytes(msgspec.yaml.encode(self.settings))
        prepare(folder)
        self.slots = Slots(opt, "a")
        (folder / "update.keys").write_text(f"{KEY.public}\n")
        self._version("a", orders or REAL)
        self._version("b", script)
        (opt / "venv").symlink_to("slots/a")
        if not orders:
            self._switched(opt, folder)
        given: dict[str, Any] = {"start_s": start_s, "watch_s": watch_s, "folder": folder}
        given |= {"script": SCRIPT, "root": ROOT, "python": sys.executable}
        for name, text in HERE.items():
            shutil.copy(UNIT.with_name(name), self.native.units)
            dropped = self.native.units / f"{name}.d"
            dropped.mkdir(exist_ok=True)
            (dropped / "slots.conf").write_text(text.format(**given))

    def _switched(self, opt: Path, folder: Path) -> None:
        subprocess.run([SCRIPT, opt, "switch"], check=True, capture_output=True)
        record = Record(state="switched", id="x", version="9.9", former=VERSION, slot="b")
        (folder / "update.json").write_bytes(msgspec.json.encode(record))

    def _version(self, name: str, script: str) -> None:
        slot = self.slots.place(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", slot], check=True)
        (site,) = slot.glob("lib/python*/site-packages")
        (site / "here.pth").write_text(f"import site; site.addsitedir({str(SITE)!r})\n")
        python = slot / "bin" / ("python" if script else "absent")
        (slot / "bin" / "holdfast").write_text(f"#!{python}\n{script}\n")
        (slot / "bin" / "holdfast").chmod(0o755)
        (slot / "slot.json").write_bytes(msgspec.json.encode(Slot(VERSION)))

    def conditions(self) -> dict[str, str]:
        try:
            held = Checked(self.socket).get("/api/v1/conditions")["conditions"]
        except HoldfastError:
            return {}
        return {one["name"]: one["cause"] for one in held}

    def log_of_states(self) -> list[str]:
        raw = (self.config.parent / "update.json").read_bytes()
        return [one.state for one in msgspec.json.decode(raw, type=Record).log]

    def of_slot(self) -> str:
        """Which slot the agent that runs is of."""
        pid = self.pid()
        words = Path(f"/proc/{pid}/cmdline").read_bytes() if pid else b""
        return next((one for one in "ab" if f"slots/{one}/bin".encode() in words), "")


def test_a_good_version_is_confirmed_and_stays(tmp_path: Path) -> None:
    made = Slotted(tmp_path, REAL)
    with booted(made.native, SERVICE, SOCKET):
        until(lambda: "agent_on_trial" in made.conditions(), "it began, on trial", LONG_S)
        assert made.of_slot() == "b"
        until(lambda: made.slots.trial() is None, "it is confirmed", LONG_S)
        until(lambda: "agent_on_trial" not in made.conditions(), "the trial is over", LONG_S)
        assert (made.slots.linked, made.log_of_states()) == ("b", ["confirmed"])
        assert made.native.shown(SERVICE, "NRestarts") == {"NRestarts": "0"}
        names = ("ActiveState",)
        over = {"ActiveState": "inactive"}
        until(lambda: made.native.shown(TRIAL, *names) == over, "nobody watches any more")


def test_an_agent_asks_the_other_version_switches_to_it_and_begins_anew(tmp_path: Path) -> None:
    """As `agent.rollback` has it: by the real self-test, root daemon, script and units."""
    made = Slotted(tmp_path, REAL, orders=ORDERED)
    with booted(made.native, SERVICE, SOCKET):
        until(lambda: made.of_slot() == "b" and made.conditions(), "it began anew", LONG_S)
        start = Checked(made.socket).get("/api/v1/watchdog")["start"]
        assert start["cause"] == "ordered", "that costs nothing"
        until(lambda: made.log_of_states()[-1:] == ["confirmed"], "it is confirmed", LONG_S)
        assert made.log_of_states() == ["built", "switched", "confirmed"]
        assert made.slots.linked == "b"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_version_is_left_behind_its_third_start(tmp_path: Path, kind: str) -> None:
    made = Slotted(tmp_path, BAD[kind], start_s=20)
    with booted(made.native, SERVICE, SOCKET):
        until(lambda: made.slots.linked == "a", "the former version is linked", 2 * LONG_S)
        told = until(lambda: made.conditions().get("agent_went_back"), "it says so", LONG_S)
        assert "3 starts came to nothing" in told
        assert f"version {VERSION} runs" in told
        assert made.of_slot() == "a"
        assert made.slots.there("b") is None
        assert made.log_of_states() == ["back"]
        until(made.up, "it is up and feeds systemd", LONG_S)


async def test_root_builds_what_is_signed(tmp_path: Path) -> None:
    """In its unit, with no right but to read what is the agent's."""
    made = Slotted(tmp_path, REAL)
    subprocess.run([SCRIPT, made.slots.folder, "back"], check=True)
    path = package(tmp_path / "update", number="9.9").rename(tmp_path / "update" / "package")
    for one, mode in ((path, 0o400), (path.parent, 0o700)):
        os.chown(one, NOBODY, NOBODY)
        one.chmod(mode)
    with booted(made.native, SOCKET):
        place = Path(f"/proc/{until(lambda: made.native.inside, 'it is booted')}/root")
        socket = place / "run" / "holdfast-root.sock"
        until(socket.exists, "root listens")
        said = await Root(socket).ask(SlotsOrder(act="build"))
        assert "holdfast-build" in said or "did it" in said
        there = until(lambda: made.slots.there("b") or made.slots.refused(), "it is done", LONG_S)
        assert there == Slot("9.9", fetched_digest(path)), made.native.log.read_text()[-3000:]


def fetched_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_version_that_runs_and_is_never_confirmed_is_left(tmp_path: Path) -> None:
    made = Slotted(tmp_path, DEAF, watch_s=5)
    with booted(made.native, SERVICE, SOCKET):
        until(lambda: made.slots.linked == "a", "the former version is linked", LONG_S)
        told = until(lambda: made.conditions().get("agent_went_back"), "it says so", LONG_S)
        assert "it was not confirmed within 5 s" in told
        assert made.of_slot() == "a"


def test_a_version_whose_models_do_not_run_goes_back_by_itself(tmp_path: Path) -> None:
    """It starts, answers and is fed by all that must move; its time is the shortest there is."""
    settings = {"domains": {"audio": {"models": ["speech"]}}, "updates": {"confirm_s": 60.0}}
    made = Slotted(tmp_path, MUTE, **settings)
    with booted(made.native, SERVICE, SOCKET):
        until(lambda: "agent_on_trial" in made.conditions(), "it began, on trial", LONG_S)
        until(lambda: made.slots.linked == "a", "the former version is linked", 2 * LONG_S)
        told = until(lambda: made.conditions().get("agent_went_back"), "it says so", LONG_S)
        assert "domain_down audio" in told
        assert made.of_slot() == "a"
        until(lambda: "domain_down" not in made.conditions(), "its models run", LONG_S)
