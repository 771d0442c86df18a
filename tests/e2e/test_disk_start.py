"""A real agent on a disk that is read-only, or full to the last byte: it is up, and says so."""

import os
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.outside import DEADLINE_S, ROOT, Device, running, until
from tests.store.faults.disk import small
from tests.store.faults.test_disk_full import fill


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """One that ended in order, so that there is no WAL."""
    with small("tmpfs", tmp_path) as place:
        made = Device(tmp_path, {"store": {"path": str(place / "holdfast.db")}})
        made.store = place / "holdfast.db"
        with running(made):
            assert made.stop() == 0
            yield made


def names(device: Device) -> set[str]:
    return {one["name"] for one in device.status()["conditions"]}


def test_on_a_read_only_disk_it_serves_from_the_state_folder(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(device.store.parent)], check=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, device.log.open("wb") as log:
        systemd.bind(str(tmp_path / "notify"))
        started = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        command = partial(subprocess.Popen, device.command, stdout=log, stderr=log, cwd=ROOT)
        device._process = command(env=started)
        until(lambda: "ends in 75 s" in device.log.read_text(), "there is no such folder: it waits")
        assert not device.dead(), "systemd would reboot after ten such ends"
        assert device.stop() == 73
        by_hand = command()
        assert by_hand.wait(DEADLINE_S) == 73, "whoever starts it by hand is told at once"
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    device.start()
    assert "store_disk_unusable" in names(device)
    assert "starts_unwritten" not in names(device)
    assert device.stop() == 0


def test_on_a_full_disk_it_serves_what_the_store_has(device: Device) -> None:
    before = device.store.stat().st_ino
    fill(device.store.parent / "ballast")
    device.start()
    assert "starts_unwritten" in names(device)
    assert device.store.stat().st_ino == before
    assert device.stop() == 0
    device.start()
    assert "starts_unwritten" in names(device), "and again"
