"""The units that ship: systemd takes them, and what they start serves."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fleet.identity.office import Office, ShippedBroker
from tests.fleet.process import FLEET, IngestProcess
from tests.outside import DEADLINE_S, ROOT, running

SHIPPED = ROOT / "provisioning" / "systemd"
PROGRAM = "/opt/holdfast-fleet/venv/bin/holdfast-fleet"
ROLES = {"ingest": "ingest", "control": "controller"}


def unit(name: str) -> str:
    return (SHIPPED / f"holdfast-fleet-{name}.service").read_text()


def test_systemd_takes_them(tmp_path: Path) -> None:
    """As they ship, but for the program, which is not here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    files = [tmp_path / f"holdfast-fleet-{name}.service" for name in ROLES]
    for name, file in zip(ROLES, files, strict=True):
        file.write_text(unit(name).replace(PROGRAM, "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--generators=no", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [row for row in done.stderr.splitlines() if "holdfast" in row]
    assert not [row for row in ours if "Documentation" not in row], done.stderr


def test_what_they_start_connects_to_the_broker_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the environment that ships, but for places."""
    office = Office(tmp_path)
    broker = ShippedBroker(tmp_path, office)
    for role in ROLES.values():
        office.pair(role, role)  # type: ignore[arg-type]
    told = (SHIPPED / "holdfast-fleet.environment").read_text()
    told = told.replace("mqtts://broker.example", broker.url.replace("127.0.0.1", "localhost"))
    told = told.replace("/etc/holdfast-fleet", str(office.folder))
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", told, re.MULTILINE))
    processes = []
    for name, role in ROLES.items():
        (at,) = re.findall(r"^Environment=HOLDFAST_FLEET_DATABASE=(.*)$", unit(name), re.MULTILINE)
        at = at.replace("/var/lib/holdfast-fleet", str(tmp_path))
        monkeypatch.setenv("HOLDFAST_FLEET_DATABASE", at)
        (line,) = re.findall(r"^ExecStart=(.*)$", unit(name), re.MULTILINE)
        process = IngestProcess(tmp_path, broker.url, at)
        words = [given[word[1:]] if word.startswith("$") else word for word in line.split()]
        process.command = " ".join(words).replace(PROGRAM, str(FLEET)).split()
        assert str(office.folder / f"{role}.crt") in process.command, "by its own certificate"
        processes.append(process)
    with running(broker, *processes):
        assert [one.stop() for one in processes] == [0, 0], "and they end in order"
