"""The power is cut while the agent is updated, on disks that forget what was not flushed.

A signed package is published, fetched over HTTP, built by pip in there, tried and confirmed, by the
units and slots as provisioning/install.sh has put them there; the system's disk outlasts the cuts,
too. After each a version that is whole runs, and goes on; in the end the command has one result,
and all that was accepted on the way is there. HOLDFAST_LONG=1 cuts in each state, at any instant,
and while an update comes to nothing. HOLDFAST_SEED gives the seed, which is printed.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import VERSION
from tests.appliance.conftest import Tell
from tests.appliance.data import data_image
from tests.appliance.disk import Disk
from tests.appliance.image.build import Image
from tests.appliance.image.layers import run
from tests.appliance.machine import TROUBLE, Machine, powered
from tests.appliance.office import Office
from tests.appliance.test_power import Accepted, send, takes_are_there
from tests.e2e.sound import SAMPLES, joined

pytestmark = pytest.mark.appliance

LONG = os.environ.get("HOLDFAST_LONG") == "1"
NEW = f"{VERSION}.1"
UPDATE = "/api/v1/commands/update-1"
BUILD_S = 3000.0  # half an hour, which its unit has, and a fetch; an emulated processor
LOOK_S = 10.0
TAKES = 2  # accepted behind each start
PLACE = "/opt/holdfast"
# The version that runs, by the slot that its program is of.
RUNS = rf"""
pid=$(systemctl show --property MainPID --value holdfast.service)
slot=$(tr '\0' '\n' </proc/$pid/cmdline | sed -n 's|^{PLACE}/slots/\(.\)/bin/python.*|\1|p')
cat {PLACE}/slots/$slot/slot.json
"""
PIP = f"test -e {PLACE}/slots/b/bin/pip && echo there || true"  # the environment is; it begins


class Moment(NamedTuple):
    """When the power goes: `within_s` at most after it is seen that `seen`."""

    seen: Callable[[Machine], bool]
    within_s: float


def state(name: str) -> Moment:
    """The update has reached this state, as the console says."""
    return Moment(lambda machine: f"version {NEW}: {name}" in machine.said(), 3.0)


def pip_runs(machine: Machine) -> bool:
    time.sleep(LOOK_S)  # whoever asks keeps it from its work
    with suppress(*TROUBLE):
        return machine.order(PIP) == "there"
    return False


def on_trial(machine: Machine) -> bool:
    with suppress(*TROUBLE):
        held = machine.ask("GET", "/api/v1/conditions", limit_s=20.0)["conditions"]
        return any(one["name"] == "agent_on_trial" for one in held)
    return False


MOMENTS = {
    name: state(name) for name in ("fetched", "built", "switched", "confirmed", "back", "idle")
}
# As root says it: the link leads there. The record has the state some seconds before.
MOMENTS["linked"] = Moment(lambda machine: "slot b is on trial" in machine.said(), 5.0)
MOMENTS["pip runs"] = Moment(pip_runs, 60.0)
MOMENTS["on trial"] = Moment(on_trial, 15.0)
MOMENTS["any instant"] = Moment(lambda machine: True, 300.0)


class Case(NamedTuple):
    """`cuts`: the moments, one after the other; `why`: what the command says of its failure."""

    cuts: list[str]
    why: str = ""
    ends: bool = False
    key: str = "release"


CASES = {"a version that is good": Case(["pip runs", "linked"])}
if LONG:
    CASES = {
        "a version that is good": Case(
            ["fetched", "pip runs", "built", "switched", "linked", "on trial", "confirmed"]
        ),
        "a good version, at any instant": Case(["any instant"] * 4),
        "a version that ends at once": Case(
            ["linked", "back"],
            f"did not prove itself (3 starts came to nothing): version {VERSION}",
            ends=True,
        ),
        "a version that root does not believe": Case(
            ["idle"], f"version {VERSION} runs", key="somebody"
        ),
    }


class Standing:
    """A machine whose disks outlast its power."""

    def __init__(self, image: Image, folder: Path, chance: random.Random) -> None:
        self.forgotten = 0
        self.files: dict[str, str] = {}  # for the next boot
        self.accepted = Accepted()
        self._image, self._folder, self._chance = image, folder, chance
        self._sound = joined(SAMPLES, chance.randrange(2**32), 60.0)
        self._system = folder / "root.img"
        run("cp", "--sparse=always", image.root, self._system)
        self._disks = [Disk(self._system), Disk(data_image(image, folder))]
        for disk in self._disks:
            disk.begin()

    @contextmanager
    def on(self) -> Iterator[Machine]:
        """Power, until the end of it, which is a cut."""
        system, data = self._disks
        machine = Machine(self._image, self._folder, data.url, system.url)
        machine.files, self.files = self.files, {}
        with powered(machine):
            machine.up()
            yield machine
        self.forgotten += sum(disk.cut(self._chance) for disk in self._disks)

    def accept(self, machine: Machine) -> None:
        """Some recordings; the agent may be on its way into another version."""
        wanted = len(self.accepted.takes) + TAKES
        machine.wait(lambda: self._accepted(machine) >= wanted, "it takes recordings in")

    def _accepted(self, machine: Machine) -> int:
        count = len(self.accepted.takes)
        with suppress(*TROUBLE):
            send(machine, self.accepted, self._sound, f"clip-{count}", 1000 * count)
        return len(self.accepted.takes)

    def end(self) -> None:
        for disk in self._disks:
            disk.end()
        self._system.unlink()


def result(machine: Machine) -> dict[str, Any] | None:
    """The command's last word."""
    with suppress(*TROUBLE):
        found: dict[str, Any] = machine.ask("GET", UPDATE, limit_s=20.0)
        return found if found["state"] in ("succeeded", "failed") else None
    return None


def runs(machine: Machine) -> str:
    """The version that runs, once it stays for as long as it takes to ask; its slot is whole."""
    with suppress(*TROUBLE):
        version: str = json.loads(machine.order(RUNS))["version"]
        return version
    return ""


def until_moment(machine: Machine, name: str, chance: random.Random) -> None:
    """Or until the command has ended."""
    moment, looked_s = MOMENTS[name], time.monotonic()

    def is_it() -> bool:
        nonlocal looked_s
        if moment.seen(machine):
            return True
        if time.monotonic() - looked_s < LOOK_S:
            return False
        looked_s = time.monotonic()
        return result(machine) is not None

    machine.wait(is_it, name, BUILD_S)
    time.sleep(chance.uniform(0.0, moment.within_s))


@pytest.mark.parametrize("kind", CASES)
def test_whenever_the_power_goes_a_whole_version_runs_and_the_command_ends(
    image: Image, tmp_path: Path, told: Tell, chance: random.Random, kind: str
) -> None:
    case = CASES[kind]
    office, standing = Office(tmp_path, image), Standing(image, tmp_path, chance)
    target = office.publish(NEW, ends=case.ends, key=case.key)
    with office.open() as standing.files:
        told.begins()
        for number, cut in enumerate([*case.cuts, ""]):
            with standing.on() as machine:
                found = machine.wait(lambda: runs(machine), "a version that is whole runs")
                assert found in (VERSION, NEW)
                if cut != "on trial":  # which lasts for some seconds
                    standing.accept(machine)
                if number:
                    told(f"{kind}: cut, {case.cuts[number - 1]}", f"version {found} runs")
                else:
                    order = {"name": "agent.update", "id": UPDATE.rpartition("/")[2]}
                    machine.ask("POST", "/api/v1/commands", {**order, "args": {"target": target}})
                if cut:
                    until_moment(machine, cut, chance)
                    continue
                word = machine.wait(lambda: result(machine), "the command ends", BUILD_S)
                ended_as(machine, word, case)
                takes_are_there(machine, standing.accepted)
                told(
                    f"{kind}, {len(case.cuts)} cuts",
                    f"{word.get('message') or word['result']}; all {len(standing.accepted.takes)} "
                    f"recordings are there; the disks forgot {standing.forgotten} sectors",
                )
    standing.end()


def ended_as(machine: Machine, word: dict[str, Any], case: Case) -> None:
    """One result, which says what is so."""
    stays = VERSION if case.why else NEW
    if case.why:
        assert word["state"] == "failed"
        assert case.why in word["message"]
    else:
        assert word["result"] == {"version": NEW, "former": VERSION, "why": "it has proved itself"}
    assert machine.wait(lambda: runs(machine), "it runs") == stays
    assert json.loads(machine.order(f"cat {PLACE}/venv/slot.json"))["version"] == stays
    machine.order(f"test ! -e {PLACE}/slots/trial")
    commands = machine.ask("GET", "/api/v1/commands")["commands"]
    assert [(one["name"], one["state"]) for one in commands] == [("agent.update", word["state"])]
    log = json.loads(machine.order("cat /var/lib/holdfast/update.json"))["log"]
    last = "confirmed" if not case.why else "back" if case.ends else "idle"
    assert [one["state"] for one in log].count(last) == 1
    assert log[-1]["state"] == last
