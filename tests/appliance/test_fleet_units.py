"""The units of the cloud side that ship, under a real systemd: what is killed is back, what cannot
be used is not tried again."""

import os
import signal
from pathlib import Path

import pytest

from tests.appliance.native import Native, booted
from tests.fleet.process import FLEET
from tests.host.lowly import NOBODY
from tests.outside import ROOT, until

UNITS = ROOT / "provisioning" / "systemd"
LONG_S = 120.0  # a start on a busy machine
ROLES = ("ingest", "control")
# What is of an installed one: here it is of a folder, and its user one that every machine has.
# Python may lie in folders that are root's: a right to go through those is all that it has more,
# and has only from the first program (env) on.
HERE = """
[Service]
User=nobody
Group=nogroup
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
AmbientCapabilities=CAP_DAC_READ_SEARCH
Environment=HOLDFAST_FLEET_DATABASE=sqlite:///{folder}/fleet.db
EnvironmentFile=
EnvironmentFile={folder}/environment
ExecStart=
ExecStart=/usr/bin/env {words}
WorkingDirectory={folder}
StateDirectory=
ConfigurationDirectory=
ReadWritePaths={folder}
ProtectHome=no
PrivateTmp=no
PrivateDevices=no
StandardError=append:{folder}/{role}.log
"""


class Fleet:
    """Both, with a broker that is not there yet."""

    def __init__(self, folder: Path, broker: str = "mqtt://127.0.0.1:1") -> None:
        self.folder = folder
        self.native = Native(folder)
        told = [f"HOLDFAST_FLEET_{role.upper()}=--broker {broker}\n" for role in ROLES]
        (folder / "environment").write_text("".join(told))
        for role in ROLES:
            name = service(role)
            text = (UNITS / name).read_text()
            (self.native.units / name).write_text(text)
            (line,) = (row for row in text.splitlines() if row.startswith("ExecStart="))
            words = line.removeprefix("ExecStart=").split()
            dropped = self.native.units / f"{name}.d"
            dropped.mkdir()
            here = {"folder": folder, "role": role, "words": " ".join([str(FLEET), *words[1:]])}
            (dropped / "here.conf").write_text(HERE.format(**here))
        os.chown(folder, NOBODY, NOBODY)
        for above in (folder, *folder.parents):  # pytest's own: others may pass, and see nothing
            if not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)

    def pid(self, role: str) -> int | None:
        return self.native.pid(f"{FLEET} {role} --broker")


def service(role: str) -> str:
    return f"holdfast-fleet-{role}.service"


def test_both_make_their_tables_and_what_is_killed_is_back(tmp_path: Path) -> None:
    made = Fleet(tmp_path)
    with booted(made.native, *map(service, ROLES)):
        for name in ("fleet.db", "fleet.control.db"):
            until((tmp_path / name).exists, f"{name} is there", LONG_S)
        for role in ROLES:
            pid = until(lambda: made.pid(role), f"{role} runs", LONG_S)  # noqa: B023
            uids = Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()
            assert uids[:2] == [str(NOBODY)] * 2
            os.kill(pid, signal.SIGKILL)
            until(lambda: made.pid(role) not in (None, pid), "another one runs", LONG_S)  # noqa: B023
            assert made.native.shown(service(role), "NRestarts") == {"NRestarts": "1"}


@pytest.mark.parametrize("broker", ["nonsense", "mqtt://127.0.0.1:1 --no-such-option"])
def test_a_command_line_that_makes_no_sense_is_not_tried_again(tmp_path: Path, broker: str) -> None:
    made = Fleet(tmp_path, broker)
    with booted(made.native, *map(service, ROLES)):
        for role in ROLES:
            over = {"ActiveState": "failed", "NRestarts": "0"}
            until(lambda: made.native.shown(service(role), *over) == over, "it ends", LONG_S)  # noqa: B023
            status = made.native.shown(service(role), "ExecMainStatus")["ExecMainStatus"]
            assert status in ("2", "78"), (tmp_path / f"{role}.log").read_text()
