"""Root's side: what it puts into a slot, and what it does not. Nothing is removed for what is not
taken: the version in the other slot is the way back."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.host.slots import build
from agent.protocol import signing
from tests.outside import ROOT
from tests.updates.rig import KEY, NEW, Device, QuickBuilder, fetched, fork, package, version

FORMER = "0.9"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path)
    version(made.opt / "slots" / "b", FORMER)
    return made


def words(device: Device, path: Path) -> list[str]:
    given = ("--folder", device.opt, "--package", path, "--keys", device.keys)
    return [str(one) for one in given]


def refused(device: Device, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why it is not taken; nothing has become of it."""
    monkeypatch.setattr(build, "Builder", QuickBuilder)
    assert build.main(words(device, path)) == build.REFUSED
    former = device.slots().there("b")
    assert former and former.version == FORMER
    assert (device.opt / "slots" / "b" / "number").exists()
    assert not (device.opt / "slots" / "incoming").exists(), "what was copied is gone"
    found = device.slots().refused()
    assert found
    return found[0].error


def test_a_signed_version_is_in_its_slot_and_runs(device: Device, tmp_path: Path) -> None:
    """By pip, without a network, into an environment of its own."""
    path = package(tmp_path / "made")
    assert build.main(words(device, path)) == 0
    made = device.slots().there("b")
    assert made and (made.version, made.digest) == (NEW, fetched(path).digest)
    command = device.opt / "slots" / "b" / "bin" / "holdfast"
    assert subprocess.check_output([command], text=True) == f"{NEW}\n"
    assert command.read_text().startswith(f"#!{device.opt}/slots/b/bin/python")
    assert device.linked == "a"
    assert device.sh("switch").returncode == 0


def test_what_is_not_for_this_device_is_refused(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    cases: dict[str, dict[str, Any]] = {
        "none of the keys": {"key": signing.Key(bytes(32))},
        "is for Python 3.5": {"python": "3.5"},
        "older than 1.0": {"number": "0.99"},
        "this machine is": {"machine": "aarch64" if os.uname().machine == "x86_64" else "x86_64"},
    }
    for told, given in cases.items():
        assert told in refused(device, package(made, **given), monkeypatch)
    path = package(made)
    link = made / "link"
    link.symlink_to(path)
    assert "it is a link" in refused(device, link, monkeypatch), "root follows nobody's link"
    assert "No such file" in refused(device, made / "absent", monkeypatch)
    path.write_bytes(path.read_bytes()[:-12_000])
    assert refused(device, path, monkeypatch)


def test_without_a_key_of_roots_nothing_is_taken(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package(tmp_path / "made")
    for text in ("", "# hf1pub:\n\n"):
        device.keys.write_text(text)
        assert "no key is believed" in refused(device, path, monkeypatch)
    device.keys.unlink()
    assert "no key is believed" in refused(device, path, monkeypatch)


def test_a_full_disk_is_told_before_anything_is_removed(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = SimpleNamespace(f_bavail=10, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: none)
    assert "64 are needed" in refused(device, package(tmp_path / "made"), monkeypatch)


def test_the_way_back_is_not_overwritten(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(device.opt / "slots" / "c", "1.0")  # so that refused() finds b as it was
    device.sh("switch")
    monkeypatch.setattr(build, "Builder", QuickBuilder)
    assert build.main(words(device, package(tmp_path / "made"))) == build.REFUSED
    found = device.slots().refused()
    assert found and "on trial" in found[0].error
    assert device.slots().there("a"), "it is there to go back to"


def test_two_at_once(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LOCK_TRIES", 1)
    with (device.opt / "slots" / "build.lock").open("ab") as lock:
        build.fcntl.flock(lock, build.fcntl.LOCK_EX)
        assert device.slots().building()
        assert build.main(words(device, package(tmp_path / "made"))) == build.BUSY
    assert not device.slots().building()


@pytest.mark.parametrize(
    ("builder", "where", "name"),
    [
        (build.Builder, build, "Package"),  # the package is copied
        (build.Builder, build, "_sync"),  # what was in the slot is nobody's
        (build.Builder, build.Builder, "_run"),  # and removed
        (QuickBuilder, os, "sync"),  # all is there, and not on the disk yet
        (QuickBuilder, build.whole_file, "replace"),
    ],
)
def test_it_is_killed_while_it_builds(
    device: Device, tmp_path: Path, builder: type, where: object, name: str
) -> None:
    """Then the slot is as it was, or nobody's; and the next time it is built."""
    path = package(tmp_path / "made")

    def killed() -> int:
        build.Builder = builder  # type: ignore[misc]
        setattr(where, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return build.main(words(device, path))

    _, status = os.waitpid(fork(killed), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    there = device.slots().there("b")
    assert (there.version if there else None) == (FORMER if name == "Package" else None)
    assert not device.slots().building()
    if there is None:
        assert device.sh("switch").returncode == 1
    again = fork(lambda: built(words(device, path)))
    assert os.waitpid(again, 0)[1] == 0
    there = device.slots().there("b")
    assert there and there.version == NEW
    assert not (device.opt / "slots" / "incoming").exists()


def built(given: list[str]) -> int:
    build.Builder = QuickBuilder  # type: ignore[misc]
    return build.main(given)


def test_the_key_in_the_shipped_file_is_none(tmp_path: Path) -> None:
    shipped = (ROOT / "provisioning" / "update.keys").read_text()
    assert KEY.public not in shipped
    assert all(not row.partition("#")[0].strip() for row in shipped.splitlines())
