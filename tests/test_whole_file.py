"""A small file is the former one or the new one, and never another's to read."""

import os
import stat
from pathlib import Path

import pytest

from agent import whole_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_private_is_so_from_its_first_byte_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.with_name("key.new").write_text("left by a crash")
    path.with_name("key.new").chmod(0o666)
    seen = list[int]()
    fsync = os.fsync

    def looked(handle: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode) & 0o077)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", looked)
    whole_file.replace(path, b"secret", whole_file.private(path))
    assert (path.read_bytes(), mode(path), seen[0]) == (b"secret", 0o600, 0)
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_what_is_replaced_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a")
    for wanted in (0o640, 0o604):
        path.chmod(wanted)
        whole_file.replace(path, b"b", whole_file.as_it_is(path))
        assert (path.read_bytes(), mode(path)) == (b"b", wanted)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes files for others")
def test_what_root_writes_for_a_service_is_the_services(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir()
    os.chown(folder, 4321, 4322)
    path = folder / "device.pem"
    whole_file.replace(path, b"secret", whole_file.private(path))
    found = path.stat()
    assert (found.st_uid, found.st_gid, mode(path)) == (4321, 4322, 0o600)


def test_what_is_removed_may_be_gone_already(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("")
    whole_file.remove(path)
    whole_file.remove(path)
    assert not path.exists()
