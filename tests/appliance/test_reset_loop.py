"""A machine that hangs again and again: with the last reset of its budget, no model runs any more.

All else is up, and a person ends it from within. The budget is small here: each reset is a boot.
"""

import io
import json
from pathlib import Path

import pytest
import soundfile
import yaml

from tests.appliance.conftest import Tell
from tests.appliance.data import data_image
from tests.appliance.image.build import HERE, Image
from tests.appliance.machine import Machine, powered
from tests.appliance.test_data_disk import CLIP, conditions
from tests.appliance.test_machine import HANG_S, HANGS, SOON
from tests.appliance.test_power import verified
from tests.listener import Listener
from tests.outside import Mosquitto, running

pytestmark = pytest.mark.appliance

RESETS = 2
CLIP_S = 1.5
PLACE = "etc/holdfast/config.yaml"
HOLDFAST = "/opt/holdfast/venv/bin/holdfast"
MODEL_PROCESSES = "pgrep --exact hf-worker || true"


def configured(broker: Mosquitto) -> str:
    """The appliance's own configuration, with a small budget, and a broker on this host."""
    whole = yaml.safe_load((HERE / "root" / PLACE).read_text())
    whole["link"] = {"broker_url": f"mqtt://10.0.2.2:{broker.port}", "ack_from": "broker"}
    whole["watchdog"]["resets_per_day_max"] = RESETS
    return yaml.safe_dump(whole)


def hang(machine: Machine) -> None:
    """Until the hardware has reset it, and the agent is back."""
    resets, starts = machine.happened("WATCHDOG"), machine.starts
    machine.shout(HANGS["panic of the kernel"])
    machine.reset(resets, HANG_S)
    machine.begun(starts)
    machine.up()


def accepted(machine: Machine) -> str:
    """The path of a take that came in now."""
    rows, rate_hz = soundfile.read(CLIP)
    clip = io.BytesIO()
    soundfile.write(clip, rows[: int(CLIP_S * rate_hz)], rate_hz, "PCM_16", format="WAV")
    path = "/api/v1/audio?source=gate&name=meanwhile&wait=false"
    take = machine.ask("POST", path, clip.getvalue())
    assert take["status"] == "hearing"
    return f"/api/v1/audio/takes/gate/{take['take']}"


def test_a_loop_of_resets_ends_in_safe_mode_until_it_is_resumed(
    image: Image, tmp_path: Path, told: Tell
) -> None:
    broker = Mosquitto(tmp_path)
    machine = Machine(image, tmp_path, str(data_image(image, tmp_path)))
    machine.arguments += f" {SOON}"
    machine.files[PLACE] = configured(broker)
    with running(broker), Listener(broker.port) as cloud, powered(machine):
        machine.up()
        told.begins()
        for left in reversed(range(RESETS)):
            assert machine.why()["safe_mode"] is None
            hang(machine)
            start = machine.why()
            assert (start["cause"], start["resets_left"]) == ("watchdog", left)
            told("the kernel panics again and again", f"reset, and back; resets left: {left}")
        in_safe_mode(machine, cloud)
        take = accepted(machine)
        assert verified(machine)["balanced"]
        assert machine.order(MODEL_PROCESSES) == ""
        told("the budget is spent", "safe mode: no model runs; store, doors, command, link are up")

        machine.order(f"{HOLDFAST} watchdog resume --config /{PLACE}")
        start = machine.why()
        assert (start["safe_mode"], start["resets_left"]) == (None, RESETS)
        machine.wait(lambda: machine.ask("GET", take)["status"] == "heard", "it is heard")
        assert machine.order(MODEL_PROCESSES) != ""
        assert conditions(machine).keys().isdisjoint({"safe_mode", "domain_down"})
        told("holdfast watchdog resume", "models run, and what came in meanwhile is heard")


def in_safe_mode(machine: Machine, cloud: Listener) -> None:
    """As who stands before it sees it, by API and command, and who is far away."""
    assert f"began anew {RESETS} times" in machine.why()["safe_mode"]["why"]
    held = conditions(machine)
    assert held["safe_mode"]["severity"] == "critical"
    assert held["domain_down"]["remedy"] == "holdfast watchdog resume"
    shown = machine.order(f"{HOLDFAST} status --config /{PLACE} || [ $? -eq 5 ]")
    assert "safe mode, no model runs" in shown
    machine.wait(lambda: heard_of(cloud), "the cloud is told of it")
    sync = "/api/v1/sync"
    machine.wait(lambda: machine.ask("GET", sync)["acknowledged_records"], "records go out")


def heard_of(cloud: Listener) -> bool:
    """Whether a heartbeat says safe mode, and why the agent began."""
    beats = map(json.loads, cloud.at("heartbeat"))
    return any(one["safe_mode"] and one["start"] == "watchdog" for one in beats)
