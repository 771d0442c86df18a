"""`holdfast config`: what it shows, and that what it shows is true, of a real agent."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tests.outside import Device, as_json, holdfast, running, until


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    made = Device(tmp_path_factory.mktemp("agent"), {})
    made.config.write_text(f"# by hand\n{made.config.read_text()}")
    with running(made):
        yield made


def config(device: Device, *arguments: str) -> CompletedProcess[str]:
    return holdfast("config", *arguments, "--config", str(device.config))


def test_a_version_from_its_check_to_its_rollback(device: Device, tmp_path: Path) -> None:
    assert config(device, "check").stdout == f"{device.config}: good\n"
    file = tmp_path / "new.yaml"
    text = "# the new one\n" + device.config.read_text() + "log_level: debug\n"
    file.write_text(text)
    would = config(device, "apply", str(file), "--dry-run")
    assert "would be version 2; it changes log_level" in would.stdout
    assert "version 1 is live" in config(device, "versions").stdout

    done = config(device, "apply", str(file), "--confirm", "1s", "--why", "to see [bold] more")
    assert done.returncode == 0, done.stderr
    assert "version 2 stays: all was well after 1 s" in done.stdout
    assert config(device, "show").stdout == text
    assert config(device, "show", "1").stdout == device.config.read_text()
    shown = config(device, "versions").stdout
    assert "version 2 is live" in shown
    found = as_json(config(device, "versions", "--json"))
    assert found["versions"][0]["why"] == "to see [bold] more"
    assert found["versions"][0]["who"].endswith(" of unix socket by http")
    ordered = {one["order"] for one in found["steps"] if one["number"] == 2}
    commands = as_json(holdfast("commands", "ls", "--json", "--config", str(device.config)))
    told = {one["id"]: (one["name"], one["state"]) for one in commands["commands"]}
    assert {told[name] for name in ordered} == {("config.apply", "succeeded")}

    back = config(device, "rollback")
    assert back.returncode == 0, back.stderr
    assert "version 1 stays" in back.stdout
    assert "says the same" in config(device, "rollback", "1").stdout


def test_one_that_waits_for_somebody(device: Device) -> None:
    patch = json.dumps({"log_level": "error"})
    done = config(device, "apply", "--patch", patch, "--manual", "--confirm", "1h", "--json")
    document = as_json(done)
    assert document["state"] == "trial"
    assert document["changed"] == ["log_level"]
    assert "comments" in document["lost"]
    shown = config(device, "versions").stdout
    assert "it is on trial: it is taken back unless it is confirmed in" in shown
    refused = config(device, "apply", "--patch", json.dumps({"log_level": "debug"}))
    assert refused.returncode == 1
    assert "is on trial" in refused.stderr
    assert config(device, "confirm").stdout == f"version {document['number']} stays\n"
    live = yaml.safe_load(config(device, "show").stdout)
    assert live["log_level"] == "error"


def test_one_that_takes_a_restart_is_waited_for(device: Device) -> None:
    pid, patch = device.pid, json.dumps({"jobs": {"jobs_max": 7}})
    done = config(device, "apply", "--patch", patch, "--manual", "--confirm", "1h")
    assert done.returncode == 0, done.stderr
    assert "it changes jobs" in done.stdout
    assert "the agent restarts for jobs: it is read at the start alone" in done.stdout

    def in_force() -> bool:
        told = config(device, "versions", "--json")
        return told.returncode == 0 and as_json(told)["in_force"] == as_json(told)["live"]

    until(in_force, "the agent that comes is on it")
    back = config(device, "rollback")
    assert back.returncode == 0, back.stderr
    assert "the agent restarts for jobs" in back.stdout
    assert "stays: the agent runs on it" in back.stdout
    assert device.pid == pid, "by hand it begins anew by itself"


def test_a_large_document_is_taken(device: Device, tmp_path: Path) -> None:
    """Of which JSON makes twice as much."""
    file = tmp_path / "large.yaml"
    file.write_text(f"{device.config.read_text()}# {'配' * 40_000}\n")
    done = config(device, "apply", str(file), "--dry-run")
    assert (done.returncode, "would be version" in done.stdout) == (0, True), done.stderr
    file.write_text(f"{device.config.read_text()}# {'x' * 270_000}\n")
    done = config(device, "apply", str(file))
    assert (done.returncode, "expected 262144 at most" in done.stderr) == (1, True)


def test_one_that_is_taken_back_ends_with_1(device: Device) -> None:
    domain = {"models": ["nowhere"]}
    patch = json.dumps({"domains": {"d": domain}})
    done = config(device, "apply", "--patch", patch, "--confirm", "1s")
    assert done.returncode == 1
    assert "nowhere" in done.stdout + done.stderr
    assert "was taken back" in config(device, "versions").stdout
    config(device, "confirm")
    assert "was taken back" not in config(device, "versions").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["apply"], 2, "name a FILE, or give a --patch"),
        (["apply", "--patch", "{"], 2, "no JSON"),
        (["apply", "absent.yaml"], 1, "absent.yaml: cannot be read"),
        (["apply", "--patch", '{"log_level": "loud"}'], 1, "log_level: unknown value 'loud'"),
        (["apply", "--patch", '{"device_id": "x"}'], 1, "device_id: is device-under-test"),
        (["rollback", "99"], 1, "no version 99 is kept"),
        (["confirm", "99"], 1, "is live, not 99"),
        (["show", "99"], 1, "no version 99 is kept"),
    ],
)
def test_what_makes_no_sense_is_refused(
    device: Device, arguments: list[str], code: int, said: str
) -> None:
    done = config(device, *arguments)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_without_an_agent_it_says_so(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    for what in ("versions", "show", "rollback", "confirm"):
        done = config(device, what)
        assert done.returncode == 3
        assert "no agent answers" in done.stderr
    assert config(device, "check").returncode == 0
