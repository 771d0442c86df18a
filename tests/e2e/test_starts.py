"""Why a real agent began, and safe mode from its beginning to its end."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cli.client import Refused
from agent.clock import Clock
from tests.outside import DEADLINE_S, ROOT, Checked, Device, holdfast, running, until


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path, {"watchdog": {"device": "/dev/none"}})
    with running(made):
        yield made


def begun(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = Checked(device.socket).get("/api/v1/watchdog")["start"]
    return found


def conditions(device: Device) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in device.status()["conditions"]}


def again(device: Device) -> str:
    """Start it once more; the cause it names."""
    device.start()
    return str(begun(device)["cause"])


def noted(device: Device, boot: str = "", restarts: int = 0) -> None:
    """As if the last run had been in another boot, or so many crashes had been before it."""
    path = device.store.parent / "starts.json"
    whole = msgspec.json.decode(path.read_bytes())
    whole["run"]["boot"] = boot or whole["run"]["boot"]
    whole["account"]["spent"] += [{"kind": "restart", "at_s": whole["ran_s"]}] * restarts
    path.write_bytes(msgspec.json.encode(whole))


def spent(device: Device) -> list[str]:
    whole = msgspec.json.decode((device.store.parent / "starts.json").read_bytes())
    return [one["kind"] for one in whole["account"]["spent"]]


def test_each_start_names_its_cause_and_is_counted(device: Device) -> None:
    assert begun(device)["cause"] == "unknown"
    assert device.stop(signal.SIGTERM) == 0
    (device.store.parent / "incoming").rmdir()
    (device.store.parent / "incoming").write_bytes(b"")
    failed = subprocess.run(device.command, capture_output=True, cwd=ROOT, check=False)
    assert failed.returncode == 1
    (device.store.parent / "incoming").unlink()
    assert again(device) == "crash"
    assert "FileExistsError" in begun(device)["why"]
    assert spent(device) == ["restart"]
    device.kill()
    noted(device, boot="another")
    assert again(device) == "unknown", "no hardware says whether it was the power"
    found = begun(device)
    # The time since this boot counts as run, too: on a machine up for a day the first is forgotten.
    assert spent(device)[-1] == "doubt", "so short a run may be a loop"
    assert found["resets_left"] == found["resets_per_day_max"], "one alone is none"
    assert found["starts"]["crash"] == found["starts"]["ordered"] == 1
    events = Checked(device.socket).get("/api/v1/watchdog/history")["events"]
    causes = [one["event"]["outcome"].split()[-1] for one in events]
    assert causes == ["unknown", "crash", "ordered"], "the newest first; of the very first no news"
    until(lambda: device.ledger("watchdog")["produced"] == 3, "each is a record")
    assert "crash" in holdfast("watchdog", "history", "--config", str(device.config)).stdout


def test_crashes_end_in_safe_mode_which_serves_all_but_models_until_it_is_resumed(
    device: Device,
) -> None:
    for restarts in (3, 0):
        assert conditions(device).keys().isdisjoint({"safe_mode"})
        device.kill()
        noted(device, restarts=restarts)
        device.start()
    held = conditions(device)
    assert "the agent began anew 5 times" in held["safe_mode"]["cause"]
    assert held["safe_mode"]["severity"] == "critical"
    assert "safe mode" in held["domain_down"]["cause"]
    assert held["domain_down"]["remedy"] == "holdfast watchdog resume"
    assert "link_down" in held, "it tries to reach its broker"
    client = Checked(device.socket)
    assert client.get("/api/v1/health/live") == {"live": True}
    with pytest.raises(Refused, match="safe mode"):
        client.post("/api/v1/domains/apply")
    until(lambda: client.get("/api/v1/watchdog")["fed"], "whoever resets it is fed")
    shown = holdfast("status", "--config", str(device.config))
    assert shown.returncode == 5
    assert "safe mode, no model runs" in shown.stdout
    assert device.status()["domains"]["audio"]["pid"] is None

    assert device.stop() == 0
    assert again(device) == "ordered"
    assert begun(device)["safe_mode"], "a restart does not end it"

    done = holdfast("watchdog", "resume", "--config", str(device.config))
    assert "resets of the machine in a day of running are left" in done.stdout
    assert begun(device)["safe_mode"] is None
    until(lambda: device.status()["domains"]["audio"]["ready"], "models are back")
    assert conditions(device).keys().isdisjoint({"safe_mode", "domain_down"})
    device.kill()
    assert again(device) == "crash"
    assert begun(device)["safe_mode"] is None


def test_a_start_that_waits_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Nothing has helped: restarts and resets are spent, and it crashed again."""
    device = Device(tmp_path, {"watchdog": {"device": "/dev/none"}})
    book = device.store.parent / "starts.json"
    clock = Clock()
    run = {"boot": clock.boot, "began_s": 0, "alive_s": clock.monotonic()}
    spent = [{"kind": kind, "at_s": 1e6} for kind in ("restart", "reset") for _ in range(6)]
    whole = {"run": run, "ran_s": 1e6, "account": {"spent": spent}}
    book.parent.mkdir()
    book.write_bytes(msgspec.json.encode(whole))
    with device.log.open("ab") as log:
        process = subprocess.Popen(device.command, stderr=log, cwd=ROOT)
        try:
            until(lambda: "it still crashes: begins in 75 s" in device.log.read_text(), "it waits")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.wait()
    assert msgspec.json.decode(book.read_bytes())["run"]["ended"] == "told"
