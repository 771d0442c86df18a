"""A disk that damages what lies on it: the running agent finds it, says so and gives up no more."""

import sqlite3
from pathlib import Path

from tests.cli.inbox import heard, inbox
from tests.outside import ROOT, Device, running, until


def flip_in_first_flac(store: Path) -> int:
    """One bit of the audio of the first segment that is held; its seq."""
    with sqlite3.connect(store) as db:
        seq, data = db.execute(
            "SELECT seq, data FROM records JOIN chunks ON chunks.id = blob << 12"
            " WHERE type = 'holdfast.segment.v1' ORDER BY records.id LIMIT 1"
        ).fetchone()
    db.close()  # checkpointed, the last one out
    file = bytearray(store.read_bytes())
    middle = data[len(data) // 2 :][:64]
    assert file.count(middle) == 1
    file[file.index(middle)] ^= 1
    store.write_bytes(file)
    return int(seq)


def test_what_the_disk_damaged_is_found_told_and_dropped(tmp_path: Path) -> None:
    device = Device(tmp_path, inbox(tmp_path))
    sample = ROOT / "samples" / "fan.flac"
    (tmp_path / "inbox" / sample.name).write_bytes(sample.read_bytes())
    with running(device):
        until((tmp_path / "inbox/done" / sample.name).exists, "it is taken in")
        until(lambda: heard(device), "it is heard")
        held = device.ledger("inbox.segments")["held"]
        assert device.status()["store"]["scrub"]["damaged"] == 0
        assert device.stop() == 0
    seq = flip_in_first_flac(device.store)
    with running(device):
        until(lambda: told(device), "it is found")
        (condition,) = told(device)
        assert f"#{seq}" in condition["cause"]
        assert condition["subject"] == "inbox.segments"
        ledger = device.ledger("inbox.segments")
        assert (ledger["held"], ledger["dropped"]) == (held - 1, {"corruption": 1})
        scrub = device.status()["store"]["scrub"]
        assert (scrub["damaged"], scrub["checked"] >= 1) == (1, True)


def told(device: Device) -> list[dict]:
    return [c for c in device.status()["conditions"] if c["name"] == "store_damaged"]
