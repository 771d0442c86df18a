"""The power is cut while records are taken in, on a disk that forgets what was not flushed.

Two take them in at once: the agent, sound by its API; and beside it a producer with a store of its
own, as fast as it can, in class `sync`. What either has answered for is there after the cut.
HOLDFAST_LONG=1 makes 20 cuts of the 2. HOLDFAST_SEED gives the seed, which is printed.
"""

import io
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.appliance.conftest import Tell
from tests.appliance.data import data_image
from tests.appliance.disk import Disk
from tests.appliance.image.build import Image
from tests.appliance.machine import BOOT_S, TROUBLE, Machine, powered
from tests.e2e.sound import RATE_HZ, SAMPLES, joined
from tests.outside import until

pytestmark = pytest.mark.appliance

CUTS = 20 if os.environ.get("HOLDFAST_LONG") == "1" else 2
CLIP_S = 1.5
BESIDE = "/var/lib/holdfast/data/beside/holdfast.db"
NO_AGENT = "systemd.mask=holdfast.service"  # its commits would save what the others have not
PRODUCER = "/opt/holdfast/venv/bin/python -P /opt/appliance/producer.py"


class Accepted:
    """What was answered for, over all cuts."""

    def __init__(self) -> None:
        self.numbers: list[int] = []  # of the producer's records
        self.takes: dict[int, int] = {}  # the agent's: samples, by take
        self.faults: list[str] = []

    def more(self, records: int, takes: int) -> None:
        """Wait until so many more are accepted."""
        wanted = (len(self.numbers) + records, len(self.takes) + takes)
        until(
            lambda: len(self.numbers) >= wanted[0] and len(self.takes) >= wanted[1],
            f"{records} more records and {takes} more recordings are accepted",
            BOOT_S,
        )


@contextmanager
def taking_in(machine: Machine, accepted: Accepted, chance: random.Random) -> Iterator[None]:
    """Both, each in a thread, until the power goes."""
    seed = chance.randrange(2**32)
    parts = (_follow_producer, (machine, accepted)), (_send_sound, (machine, accepted, seed))
    threads = [threading.Thread(target=target, args=given, daemon=True) for target, given in parts]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def _follow_producer(machine: Machine, accepted: Accepted, environment: str = "") -> None:
    with machine.lines(f"{environment} {PRODUCER} {BESIDE} 2>&1".strip()) as lines:
        for line in lines:
            if not line.isdigit():
                accepted.faults.append(line)
                continue
            accepted.numbers.append(int(line))


def _send_sound(machine: Machine, accepted: Accepted, seed: int) -> None:
    sound = joined(SAMPLES, seed, 60.0)
    with suppress(*TROUBLE):  # the power went
        for number in range(10**6):
            send(machine, accepted, sound, f"clip-{seed}-{number}", number * 1000)


def send(machine: Machine, accepted: Accepted, sound: Any, name: str, start: int) -> None:
    """A piece of this sound, from this sample on, as a recording. Raises one of TROUBLE."""
    samples = int(CLIP_S * RATE_HZ)
    rows, clip = sound[start % (len(sound) - samples) :][:samples], io.BytesIO()
    soundfile.write(clip, rows, RATE_HZ, "PCM_16", format="WAV")
    path = f"/api/v1/audio?source=gate&name={name}&wait=false"
    take = machine.ask("POST", path, clip.getvalue())
    accepted.takes[take["take"]] = take["samples"]


def test_what_was_accepted_outlasts_the_cuts(
    image: Image, tmp_path: Path, told: Tell, chance: random.Random
) -> None:
    path = data_image(image, tmp_path)
    disk, accepted = Disk(path), Accepted()
    disk.begin()
    forgotten = 0
    for cut in range(CUTS + 1):
        machine = Machine(image, tmp_path, disk.url)
        with powered(machine):
            machine.up()
            if cut:
                all_is_there(machine, accepted)
                told(
                    f"power cut {cut} of {CUTS}",
                    f"all {len(accepted.numbers)} records and {len(accepted.takes)} recordings "
                    "accepted so far are there, both ledgers balance; "
                    f"the disk forgot {forgotten} sectors so far",
                )
            if cut == CUTS:
                break
            with taking_in(machine, accepted, chance):
                accepted.more(records=20, takes=2)
                time.sleep(chance.uniform(0.5, 5.0))  # at any moment of what goes on
                machine.cut()
        forgotten += disk.cut(chance)
        assert not accepted.faults
    disk.end()


def all_is_there(machine: Machine, accepted: Accepted) -> None:
    """Each answer stands, and the ledgers balance."""
    there = json.loads(machine.order(f"{PRODUCER} {BESIDE} --there").splitlines()[-1])
    assert set(accepted.numbers) <= set(there["numbers"])
    assert there["faults"] == there["aside"] == []
    ledger = there["ledger"]
    assert ledger == {
        "produced": len(there["numbers"]),
        "held": len(there["numbers"]),
        "dropped": {},
    }
    takes_are_there(machine, accepted)
    start = machine.why()
    assert start["cause"] == "power"
    assert start["resets_left"] == start["resets_per_day_max"], "a power cut costs nothing"
    names = {one["name"] for one in machine.ask("GET", "/api/v1/conditions")["conditions"]}
    assert not names & {"store_quarantined", "store_damaged", "store_unwritable"}


def takes_are_there(machine: Machine, accepted: Accepted) -> None:
    """Each recording, all sound can be read, and the agent's ledger balances."""
    for take, samples in accepted.takes.items():
        assert machine.ask("GET", f"/api/v1/audio/takes/gate/{take}")["samples"] == samples
    report = verified(machine)
    assert report["balanced"]
    assert report["faults"] == []


def verified(machine: Machine) -> dict[str, Any]:
    """The report of a verify that reads all sound, too."""
    machine.ask("POST", "/api/v1/outbox/verify?deep=true")
    path = "/api/v1/outbox/verify"
    report: dict[str, Any] = machine.wait(lambda: machine.ask("GET", path)["report"], "a verify")
    return report


@pytest.mark.parametrize("fault", ["synchronous=NORMAL", "a disk that ignores flushes"])
def test_the_cut_would_find_a_store_that_is_not_safe(
    image: Image, tmp_path: Path, told: Tell, chance: random.Random, fault: str
) -> None:
    """The negative control: with each of these faults, accepted records are gone."""
    path = data_image(image, tmp_path)
    lax = fault == "synchronous=NORMAL"
    disk, accepted = Disk(path, lies=not lax), Accepted()
    disk.begin()
    machine = Machine(image, tmp_path, disk.url)
    machine.arguments += f" {NO_AGENT}"
    with powered(machine):
        machine.handy()
        environment = "env PYTHONPATH=/opt/appliance/lax" if lax else ""
        given = (machine, accepted, environment)
        follows = threading.Thread(target=_follow_producer, args=given)
        follows.start()
        accepted.more(records=200, takes=0)
        machine.cut()
        follows.join(60)
    disk.cut(chance)
    machine = Machine(image, tmp_path, disk.url)
    if lax:
        machine.arguments += f" {NO_AGENT}"
    with powered(machine):
        if lax:
            machine.handy()
        else:
            machine.up()  # whatever the disk is by now: the agent is not mute
        there = remaining(machine)
    disk.end()
    lost = set(accepted.numbers) - there
    assert lost
    told(
        f"control: {fault}, power cut",
        f"{len(lost)} of {len(accepted.numbers)} accepted records lost",
    )


def remaining(machine: Machine) -> set[int]:
    with suppress(ValueError):  # the disk itself is gone
        said = machine.order(f"{PRODUCER} {BESIDE} --there")
        return set(json.loads(said.splitlines()[-1])["numbers"])
    return set()
