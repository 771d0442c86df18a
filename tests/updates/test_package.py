"""A version of the agent as it travels: what is not as it was signed is refused as a whole."""

import io
import random
import tarfile
from pathlib import Path

import pytest

from agent.errors import ProtocolError
from agent.protocol import signing
from agent.protocol.package import FIRST, Package, newer_or_same, pack
from tests.updates.rig import KEY, NEW, PYTHON, package, wheel

SEED = 8


def opened(raw: bytes, *keys: str) -> Package:
    return Package(io.BytesIO(raw), keys or [KEY.public])


def unpacked(raw: bytes, folder: Path) -> list[str]:
    folder.mkdir()
    opened(raw).unpack(folder)
    return sorted(one.name for one in folder.iterdir())


def members(raw: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def packed(rows: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in rows:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    raw = package(tmp_path / "made").read_bytes()
    manifest = opened(raw).manifest
    assert (manifest.version, manifest.python, manifest.machine) == (NEW, PYTHON, "any")
    assert unpacked(raw, tmp_path / "out") == ["holdfast-1.1-py3-none-any.whl"]
    made = (tmp_path / "made" / "holdfast-1.1-py3-none-any.whl").read_bytes()
    assert (tmp_path / "out" / "holdfast-1.1-py3-none-any.whl").read_bytes() == made


def test_a_stranger_is_not_believed(tmp_path: Path) -> None:
    raw = package(tmp_path, key=signing.Key(bytes(32))).read_bytes()
    with pytest.raises(ProtocolError, match="none of the keys"):
        opened(raw)


def test_nothing_in_it_may_be_another(tmp_path: Path) -> None:
    raw = package(tmp_path).read_bytes()
    (first, manifest), (name, content) = members(raw)
    changed = bytearray(content)
    changed[9] ^= 1
    cases = {
        "not the one that was signed": [(first, manifest), (name, bytes(changed))],
        "of 0*[0-9]+ bytes next": [(first, manifest), (name, content[:-1])],
        "bytes next": [(first, manifest), ("../x.whl", content)],
        "more than was signed": [(first, manifest), (name, content), (name, content)],
        f"expected {FIRST}": [(name, content), (first, manifest)],
        "not of this package": [(first, manifest.replace(b"1.1", b"1.2")), (name, content)],
    }
    for number, (told, rows) in enumerate(cases.items()):
        with pytest.raises(ProtocolError, match=told):
            unpacked(packed(rows), tmp_path / str(number))
    with pytest.raises(ProtocolError, match="is no file"):
        opened(packed([(first, b"")], tarfile.SYMTYPE))


def test_whatever_comes_is_unpacked_or_refused(tmp_path: Path) -> None:
    """Cut anywhere, and with any byte another."""
    raw, chance = package(tmp_path / "made").read_bytes(), random.Random(SEED)
    whole = unpacked(raw, tmp_path / "whole")
    for number in range(600):
        bent = bytearray(raw[: chance.randrange(len(raw))] if number % 3 == 0 else raw)
        for _ in range(0 if number % 3 == 0 else chance.randrange(1, 9)):
            bent[chance.randrange(len(bent))] = chance.randrange(256)
        place = tmp_path / str(number)
        try:
            assert unpacked(bytes(bent), place) == whole
        except ProtocolError:
            continue
        for one in place.iterdir():
            assert one.read_bytes() == (tmp_path / "whole" / one.name).read_bytes()


def test_what_could_not_be_read_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="Manifest"):
        pack(io.BytesIO(), [wheel(tmp_path)], "1.1; reboot", PYTHON, "any", KEY)


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("1.10", "1.9", True), ("1.0", "1", True), ("1", "1.0.0", True), ("1.9", "1.10", False)],
)
def test_versions_are_numbers(version: str, than: str, newer: bool) -> None:
    assert newer_or_same(version, than) == newer
