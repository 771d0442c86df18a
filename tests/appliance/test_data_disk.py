"""A data disk that is gone, or fails its check: the agent is not mute, and loses nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.appliance.conftest import Tell
from tests.appliance.data import BLOCK_BYTES, data_image
from tests.appliance.image.build import Image
from tests.appliance.machine import Machine, powered
from tests.appliance.test_power import verified
from tests.e2e.sound import SAMPLES

pytestmark = pytest.mark.appliance

MISSING = "store_disk_missing"
SUPER_BLOCK_COPY = 32_768  # where ext4 keeps the first copy of what the test destroys
CLIP = SAMPLES / "workshop.flac"


def conditions(machine: Machine) -> dict[str, Any]:
    found = machine.ask("GET", "/api/v1/conditions")["conditions"]
    return {one["name"]: one for one in found}


def accepted(machine: Machine, name: str) -> dict[str, Any]:
    path = f"/api/v1/audio?source=gate&name={name}&wait=false"
    found: dict[str, Any] = machine.ask("POST", path, CLIP.read_bytes())
    return found


def test_without_its_data_disk_the_agent_says_so_and_takes_in(
    image: Image, tmp_path: Path, told: Tell
) -> None:
    with powered(Machine(image, tmp_path, None)) as machine:
        machine.up()
        found = conditions(machine)[MISSING]
        assert found["severity"] == "critical"
        assert "/var/lib/holdfast/data.standby" in found["cause"]
        assert accepted(machine, "clip")["samples"]
        told("no data disk", f"the agent runs, takes in, and says {MISSING}")


def test_what_was_taken_in_beside_a_broken_disk_comes_home(
    image: Image, tmp_path: Path, told: Tell
) -> None:
    path = data_image(image, tmp_path)
    with path.open("r+b") as file:
        file.write(bytes(BLOCK_BYTES))  # what says that it is a file system
    with powered(Machine(image, tmp_path, str(path))) as machine:
        machine.up()
        assert MISSING in conditions(machine)
        failed = machine.order("systemctl --failed --plain --no-legend")
        assert "var-lib-holdfast-data.mount" in failed
        take = accepted(machine, "meanwhile")
        epoch = machine.ask("GET", "/api/v1/ledger")["epoch"]
        told("fsck of the data disk fails", f"the agent runs, takes in, and says {MISSING}")

        repair = f"e2fsck -y -b {SUPER_BLOCK_COPY} -B {BLOCK_BYTES} /dev/vdb"
        machine.order(f"{repair} || [ $? -le 1 ]")
        before = machine.starts
        machine.shout("systemctl --no-block reboot")  # who would answer is ended by it
        machine.begun(before)
        machine.up()
        assert MISSING not in conditions(machine)
        account = machine.wait(lambda: home(machine, epoch), "what was kept is in the store")
        assert account["produced"] > 0
        assert account["dropped"] == {}
        assert verified(machine)["faults"] == []
        seconds = take["length_s"]
        told("the disk is repaired", f"the {seconds:.0f} s taken in meanwhile are in the store")


def home(machine: Machine, epoch: str) -> dict[str, Any] | None:
    """The sound's balance of a former epoch, once it was saved."""
    held = machine.ask("GET", "/api/v1/ledger")["epochs"].get(epoch, {})
    return held["gate.raw"]["balance"] if "gate.raw" in held else None
