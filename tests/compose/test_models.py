"""A version on probation, and an agent that dies of it again and again."""

import shutil
from pathlib import Path
from typing import Any

from agent.inference.domains.choices import Choices
from agent.updates.trials import Trial, Trials
from agent.updates.verdict import CRASHES_MAX
from tests.inference.domains.rig import put
from tests.outside import ROOT, Device, running, until


def test_an_agent_that_dies_again_and_again_goes_back_to_the_former_version(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    put(models, 1)
    put(models, 2)
    shutil.copytree(ROOT / "models/speech", models / "speech")
    (models / ".staging/in/m/3").mkdir(parents=True)
    device = Device(
        tmp_path, {"models": {"path": str(models)}, "domains": {"d": {"models": ["m"]}}}
    )
    Choices(device.store.with_name("models.json")).choose("m", 2, 1)
    trial = Trial(
        command="c",
        name="m",
        version=2,
        former=1,
        probation_s=600.0,
        left_s=600.0,
        state="watched",
        crashes=CRASHES_MAX,
    )
    trials = device.store.with_name("trials.json")
    Trials(trials).note(trial)
    with running(device):
        assert not (models / ".staging").exists(), "what an update left"
        assert version(device) == 2
        assert "model_on_probation" in conditions(device)
        device.kill()
        device.start()
        assert version(device) == 1
        said = conditions(device)["model_taken_back"]
        assert f"ended unasked {CRASHES_MAX + 1} times" in said["cause"]
        assert "model.remove m/2" in said["remedy"]
        assert device.stop() == 0


def version(device: Device) -> Any:
    """Which one serves, once one does."""
    return until(lambda: device.status()["models"].get("m", {}).get("version"), "one serves")


def conditions(device: Device) -> dict[str, Any]:
    return {one["name"]: one for one in device.status()["conditions"]}
