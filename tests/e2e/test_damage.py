"""A real agent on a store that was damaged: it serves, says so, and sends what was saved."""

import random
import shutil
from pathlib import Path

import pytest

from tests.e2e.judge import Judge
from tests.outside import ROOT, Device, Mosquitto, free_port, running, until
from tests.store.faults import corrupt

STREAM = "inbox.segments"


@pytest.mark.parametrize(
    "damage", [corrupt.leaf("records"), corrupt.header], ids=["leaf", "header"]
)
def test_an_agent_on_a_damaged_store(tmp_path: Path, damage: corrupt.Damage) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    port = free_port()
    device = Device(
        tmp_path,
        {
            "audio": {
                "sources": [
                    {"kind": "folder", "name": "inbox", "path": str(inbox), "settle_s": 0.1}
                ]
            },
            "link": {"broker_url": f"mqtt://127.0.0.1:{port}", "ack_from": "ingest"},
        },
    )
    recordings = sorted((ROOT / "samples").glob("*.flac"))
    with running(device):
        for recording in recordings:
            shutil.copy(recording, inbox)
        until(lambda: len(list(inbox.glob("done/*.flac"))) == len(recordings), "all are taken in")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "all are heard")
        held = device.ledger(STREAM)["held"]
        epoch = device.status()["store"]["epoch"]
        assert device.stop() == 0
    said = damage(device.store, random.Random(1))
    judge = Judge(tmp_path / "judge.db", port, "device-under-test")
    with running(Mosquitto(tmp_path, port), judge, device):
        until(lambda: device.status()["link"]["connected"], "it is connected")
        shutil.copy(recordings[0], inbox / "again.flac")
        until(lambda: (inbox / "done" / "again.flac").exists(), "it takes recordings in")
        until(lambda: "saved from it" in told(device), "the report says what was saved")
        until(lambda: device.ledger(STREAM)["held"] == 0, "all that there is was sent")
        store = device.status()["store"]
        assert store["epoch"] != epoch, said
        assert [one["epoch"] for one in store["quarantine"]] == [epoch]
        until(lambda: len(judge.last("heartbeat")["ledger"]) == 2, "the cloud sees both epochs")
        lost = device.ledger(STREAM)["dropped"].get("corruption", 0)
        assert lost <= held
        assert judge.count(epoch, STREAM) == held - lost, f"{said}: {told(device)}"
        assert (lost > 0) == (damage is not corrupt.header)
    assert "Traceback" not in device.log.read_text()


def told(device: Device) -> str:
    """What the status says of a damaged file."""
    conditions = device.status()["conditions"]
    return " ".join(c["cause"] for c in conditions if c["name"] == "store_quarantined")
