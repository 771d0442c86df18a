"""`holdfast logs` and `holdfast conditions`, on a real agent and on one that is down."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outside import DEADLINE_S, HOLDFAST, ROOT, Checked, Device, holdfast, running, until


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    found = Device(tmp_path_factory.mktemp("logs"), {})
    with running(found):
        yield found


def test_the_last_lines(device: Device) -> None:
    said = holdfast("logs", "--config", str(device.config))
    assert said.returncode == 0, said.stderr
    assert "on device device-under-test" in said.stdout
    found = holdfast("logs", "--json", "--count", "1", "--config", str(device.config))
    assert len(json.loads(found.stdout)["lines"]) == 1
    found = holdfast("logs", "--level", "loud", "--config", str(device.config))
    assert (found.returncode, "level" in found.stderr) == (1, True)


def test_follow_until_the_agent_ends(tmp_path: Path) -> None:
    device, out = Device(tmp_path, {}), tmp_path / "said"
    with running(device), out.open("wb") as said:
        follow = subprocess.Popen(
            [str(HOLDFAST), "logs", "-f", "--config", str(device.config)],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        try:
            until(lambda: "on device" in out.read_text(), "the lines before are shown")
            Checked(device.socket).post("/api/v1/sync/pause")
            until(lambda: "ordered: pause" in out.read_text(), "it follows")
            assert device.stop() == 0
            assert follow.wait(DEADLINE_S) == 3
        finally:
            follow.kill()
            follow.wait()
    assert "stopping: what is unfinished is kept" in out.read_text(), "it came while it followed"
    assert "the agent ended" in out.read_text()
    found = holdfast("conditions", "--config", str(device.config))
    assert (found.returncode, "NO AGENT RUNS." in found.stdout) == (3, True)
    assert "link" in found.stdout, "of the last snapshot"


def test_without_an_agent_it_says_where_the_log_is(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    said = holdfast("logs", "--config", str(device.config))
    assert said.returncode == 3
    assert "journalctl" in said.stderr
    assert said.stdout == ""


def test_conditions(device: Device) -> None:
    until(lambda: device.status()["conditions"], "the broker cannot be reached")
    word = device.status()["status"]
    code = {"healthy": 0, "degraded": 4, "unhealthy": 5}[word]
    said = holdfast("conditions", "--config", str(device.config))
    assert (said.returncode, said.stdout.splitlines()[0]) == (code, word), said.stderr
    assert "->" in said.stdout
    found = json.loads(holdfast("conditions", "--json", "--config", str(device.config)).stdout)
    assert found.keys() == {"status", "conditions"}
