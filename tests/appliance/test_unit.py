"""The unit that ships, under a real systemd: what hangs is started again, what cannot start not."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import HoldfastError
from tests.appliance.native import Native, booted
from tests.outside import HOLDFAST, ROOT, Checked, hang, until

UNIT = ROOT / "provisioning" / "systemd" / "holdfast.service"
SERVICE = "holdfast.service"
# Thirty seconds until it is killed, and a start. What waits for a processor is not dead yet, and
# has longer on a busy machine.
LONG_S = 240.0
# What of the unit is of an installed agent: here it is one of a folder, and of this user.
HERE = """
[Service]
User=root
Group=root
ExecStartPre=
ExecStartPre=-{root}/provisioning/uncounted.sh {folder}/uncounted {starts_max} 75
ExecStart=
ExecStart={command} run --config {config}
Environment=STATE_DIRECTORY={folder}
WorkingDirectory={root}
StateDirectory=
RuntimeDirectory=
ConfigurationDirectory=
ReadWritePaths={folder}
ProtectHome=no
PrivateTmp=no
StandardError=append:{log}
"""


class Unit:
    """The agent as a service."""

    def __init__(self, folder: Path, command: Path = HOLDFAST, starts_max: int = 60) -> None:
        self.native = Native(folder)
        self.uncounted = folder / "uncounted"
        self.socket = folder / "holdfast.sock"
        self.config = folder / "config.yaml"
        self.log = folder / "agent.log"
        self.settings = {
            "device_id": "device-under-test",
            "models": {"path": str(ROOT / "models")},
            "store": {"path": str(folder / "var" / "holdfast.db")},
            "api": {"port": 0, "socket": str(self.socket)},
            "link": {"broker_url": "mqtt://127.0.0.1:1", "ack_from": "ingest"},
        }
        self.config.write_text(yaml.safe_dump(self.settings))
        (self.native.units / SERVICE).write_text(UNIT.read_text())
        dropped = self.native.units / f"{SERVICE}.d"
        dropped.mkdir()
        here = {"command": command, "config": self.config, "root": ROOT, "folder": folder}
        text = HERE.format(**here, log=self.log, starts_max=starts_max)
        (dropped / "here.conf").write_text(text)

    def pid(self) -> int | None:
        return self.native.pid(f"agent.cli.run {self.config}")

    def up(self) -> bool:
        try:
            return bool(Checked(self.socket).get("/api/v1/watchdog")["fed"])
        except HoldfastError:
            return False

    def another(self, than: int | None) -> bool:
        return self.pid() not in (None, than) and self.up()


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    made = Unit(tmp_path)
    with booted(made.native, SERVICE):
        until(made.up, "it is up and feeds systemd", LONG_S)
        yield made


def test_an_agent_that_is_stopped_is_killed_and_started_again(unit: Unit) -> None:
    """A process that cannot run cannot end itself: the unit's WatchdogSec does."""
    pid = unit.pid()
    assert pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: unit.another(pid), "another one is up", LONG_S)
    assert unit.native.shown(SERVICE, "NRestarts") == {"NRestarts": "1"}


def test_an_agent_whose_loop_hangs_ends_itself_and_is_started_again(unit: Unit) -> None:
    pid = unit.pid()
    hang(unit.socket, "loop")
    until(lambda: unit.another(pid), "another one is up", LONG_S)
    (event,) = Checked(unit.socket).get("/api/v1/watchdog/history")["events"][:1]
    assert event["event"]["part"] == "agent", "its own end came first"
    assert "_hang_here" in (unit.config.parent / "var" / "hung.last.txt").read_text()


def test_a_killed_agent_is_back(unit: Unit) -> None:
    pid = unit.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: unit.another(pid), "another one is up", LONG_S)
    assert unit.uncounted.read_text() == "0\n", "its own book has all starts"


def test_another_configuration_is_begun_on_and_one_that_does_not_start_is_taken_back(
    unit: Unit,
) -> None:
    pid, door = unit.pid(), "/api/v1/config"
    _order(unit, "config.apply", patch={"jobs": {"jobs_max": 7}}, confirm_s=3600)
    until(lambda: unit.another(pid), "another one is up", LONG_S)
    assert Checked(unit.socket).get(door)["in_force"] == 2
    assert _order(unit, "config.confirm")["state"] == "succeeded"
    pid = unit.pid()
    _order(unit, "config.apply", patch={"api": {"group": "no-such-group"}})
    until(lambda: unit.another(pid), "another one is up", LONG_S)
    found = Checked(unit.socket).get(door)
    assert (found["in_force"], found["taken_back"]["number"]) == (2, 3)
    assert unit.native.shown(SERVICE, "NRestarts") == {"NRestarts": "3"}


def _order(unit: Unit, name: str, **args: Any) -> dict[str, Any]:
    """Its result so far: the agent may end of it."""
    order = {"name": name, "args": args}
    return Checked(unit.socket).post("/api/v1/commands?wait_s=10", order)


def test_what_never_comes_to_be_an_agent_is_not_started_so_often_that_systemd_reboots(
    tmp_path: Path,
) -> None:
    """As after a torn installation: 203/EXEC."""
    made = Unit(tmp_path, tmp_path / "absent", starts_max=3)
    with booted(made.native, SERVICE):
        until(lambda: made.native.pid("sleep 75"), "the fourth start waits")
        assert made.uncounted.read_text() == "4\n"
        names = ("ActiveState", "SubState", "NRestarts")
        waits = {"ActiveState": "activating", "SubState": "start-pre", "NRestarts": "3"}
        assert made.native.shown(SERVICE, *names) == waits


def test_a_configuration_that_cannot_be_used_is_no_reason_to_try_again(tmp_path: Path) -> None:
    made = Unit(tmp_path)
    made.config.write_text(yaml.safe_dump({**made.settings, "store": {"path": 7}}))
    with booted(made.native, SERVICE):
        names = ("ActiveState", "ExecMainStatus", "NRestarts")
        ended = {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
        until(lambda: made.native.shown(SERVICE, *names) == ended, "it ends, and that is all")
