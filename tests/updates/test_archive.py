"""Archives of a stranger's: what is taken of them, and what never is."""

import itertools
import os
import subprocess
import tarfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
import zstandard
from hypothesis import given

from agent.errors import ModelError
from agent.inference.catalog import Catalog
from agent.updates import archive
from agent.updates.archive import Unpacker, Wanted
from agent.updates.tar import BLOCK_BYTES, END_BYTES_MAX
from tests.inference.catalog.repository import describe, install, linear, pair
from tests.updates.packs import Entry, files_of, header, pack, put, tar

EVIL = b"#!/bin/sh\n"


def unpack(path: Path, sha256: str, root: Path, **wanted: object) -> Path:
    """The folder of the version."""
    unpacker = Unpacker(lambda _: None, lambda: False)
    found = unpacker.unpack(path, root, Wanted(sha256, **wanted))  # type: ignore[arg-type]
    return root / found.name / str(found.version)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version with golden files."""
    folder = install(tmp_path / "made", linear(), version=2)
    x = np.ones((2, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": 2 * x})] * 2)
    return folder


@pytest.mark.parametrize("zstd", [False, True])
def test_a_version_comes_out_as_it_went_in(folder: Path, tmp_path: Path, zstd: bool) -> None:
    path, sha256 = pack(folder, tmp_path / "m.tar", zstd=zstd)
    made = unpack(path, sha256, tmp_path / "in", name="m", version=2)
    assert files_of(made) == files_of(folder)
    assert Catalog(tmp_path / "in").verified("m", 2).label.startswith("m/2@")


def test_what_the_document_says_makes_an_archive(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    names = ["model.yaml", "model.onnx", "golden"]
    subprocess.run(["tar", "--format=ustar", "-cf", path, "-C", folder, *names], check=True)
    path, sha256 = put(path, path.read_bytes())
    assert files_of(unpack(path, sha256, tmp_path / "in")) == files_of(folder)


def test_it_is_the_file_and_the_version_that_was_ordered(folder: Path, tmp_path: Path) -> None:
    path, sha256 = pack(folder, tmp_path / "m.tar")
    with pytest.raises(ModelError, match=r"sha256 is .*expected 0000"):
        unpack(path, "0" * 64, tmp_path / "in")
    for wanted in ({"name": "other"}, {"version": 3}):
        with pytest.raises(ModelError, match="is m/2, expected"):
            unpack(path, sha256, tmp_path / "in2", **wanted)


def changed(entries: list[Entry], name: str, content: bytes) -> list[Entry]:
    return [(one, content if one == name else had) for one, had in entries]


def said(entries: list[Entry], **more: object) -> list[Entry]:
    """With other words in model.yaml."""
    whole = {**yaml.safe_load(entries[0][1]), **more}
    return changed(entries, "model.yaml", yaml.safe_dump(whole).encode())


def attacks(entries: list[Entry]) -> dict[str, tuple[bytes, str]]:
    """By name: an archive, and why it is refused."""
    link, hard, pipe = (
        header("model.onnx", kind, linkname="/etc/passwd")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
    )
    two = dict(yaml.safe_load(entries[0][1]))
    golden = dict(two["golden"][0])
    upper = {**golden, "inputs": "MODEL.ONNX"}
    within = {**golden, "inputs": "model.onnx/in.npz"}
    pax = tarfile.TarInfo("model.yaml")
    pax.pax_headers = {"path": "../../evil"}
    sparse = header("model.onnx", b"S", size=0)
    big = bytearray(tar(entries)[:BLOCK_BYTES])
    return {
        "a link": (tar([entries[0], link]), "a link"),
        "a hard link": (tar([entries[0], hard]), "a hard link"),
        "a pipe": (tar([entries[0], pipe]), "a pipe"),
        "a device": (tar([entries[0], header("model.onnx", tarfile.CHRTYPE)]), "a device"),
        "a hole": (tar([entries[0], sparse]), "a file with holes"),
        "up": (tar([*entries, ("../evil", EVIL)]), "no plain name"),
        "up within": (tar([*entries, ("golden/../../evil", EVIL)]), "no plain name"),
        "absolute": (tar([*entries, ("/etc/evil", EVIL)]), "no plain name"),
        "absolute folder": (tar([*entries, header("/etc/x", tarfile.DIRTYPE)]), "no plain name"),
        "dot": (tar([("./model.yaml", entries[0][1])]), "no plain name"),
        "newline": (tar([*entries, ("a\nb", EVIL)]), "no plain name"),
        "unnamed": (tar([*entries, ("evil.so", EVIL)]), "does not name 'evil.so'"),
        "twice": (tar([*entries, entries[-1]]), "twice"),
        "manifest twice": (tar([*entries, entries[0]]), "does not name 'model.yaml'"),
        "case": (tar(said(entries, golden=[upper])), "large and small"),
        "its own folder": (tar(said(entries, golden=[within])), "as the folder of another"),
        "the manifest": (tar(said(entries, file="Model.yaml")), "large and small"),
        "name": (tar(said(entries, name="../../etc")), "no name of a model"),
        "missing": (tar(entries[:-1]), "without model.onnx"),
        "order": (tar(entries[::-1]), "expected model.yaml as the first"),
        "empty": (tar([]), "expected model.yaml as the first"),
        "longer": (tar(changed(entries, "model.onnx", bytes(10**6))), "1,000,000 bytes, expected"),
        "shorter": (tar(changed(entries, "model.onnx", b"x")), "1 bytes, expected"),
        "huge yaml": (tar([("model.yaml", bytes(300 << 10))]), "model.yaml is too large"),
        "no yaml": (tar([("model.yaml", b"\0\1")]), "model.yaml"),
        "pax": (tar([pax], tarfile.PAX_FORMAT), "a pax header"),
        "gnu": (tar([("x" * 200, EVIL)], tarfile.GNU_FORMAT), "a long name of GNU's"),
        "truncated": (tar(entries)[: -(20 << 10)], "ends within"),
        "no end": (tar(entries).rstrip(b"\0"), "ends within"),
        "behind": (tar(entries) + EVIL, "goes on behind its end"),
        "zeros behind": (tar(entries) + bytes(END_BYTES_MAX + 1), "goes on behind its end"),
        "two": (tar(entries) + tar(entries), "goes on behind its end"),
        "sum": (bytes([big[0] ^ 1, *big[1:]]) + tar(entries)[BLOCK_BYTES:], "checksum"),
        "no tar": (EVIL * 1000, "checksum is no number"),
        "zip": (b"PK\x03\x04" + bytes(1000), "checksum is no number"),
        "nothing": (b"", "ends within a header"),
        "cut zstd": (zstandard.compress(tar(entries))[:-200], "ends within"),
        "bad zstd": (zstandard.compress(tar(entries))[:4] + bytes(range(99)), "no whole zstd"),
        "behind zstd": (zstandard.compress(tar(entries)) + EVIL, "no whole zstd"),
    }


def test_what_is_not_as_it_should_be_is_refused_and_writes_nothing_elsewhere(
    folder: Path, tmp_path: Path
) -> None:
    for number, (name, (content, why)) in enumerate(attacks(files_of(folder)).items()):
        root = tmp_path / f"box-{number}" / "in"
        path, sha256 = put(tmp_path / "m.tar", content)
        with pytest.raises(ModelError) as caught:
            unpack(path, sha256, root)
        assert why in str(caught.value), (name, str(caught.value))
        assert caught.value.hint, name
        outside = [one for one in root.parent.rglob("*") if one.is_symlink() or "evil" in one.name]
        assert not outside, name
        assert {one.name for one in root.glob("*")} <= {"m"}, name


def test_a_small_archive_does_not_become_a_large_folder(folder: Path, tmp_path: Path) -> None:
    """A gigabyte of zeros is refused at its header; what is asked of the disk is what is said."""
    entries = files_of(folder)
    bomb = zstandard.ZstdCompressor().compress(
        tar(entries[:1])[:1024] + tar([("golden/1.in.npz", bytes(70 << 20))])
    )
    path, sha256 = put(tmp_path / "bomb.tar.zst", bomb)
    asked = list[int]()
    with pytest.raises(ModelError, match="73,400,320 bytes, expected 67,108,864 at most"):
        Unpacker(asked.append, lambda: False).unpack(path, tmp_path / "in", Wanted(sha256))
    assert asked == [(folder / "model.onnx").stat().st_size]
    assert sum(one.stat().st_size for one in (tmp_path / "in").rglob("*.npz")) == 0


def test_golden_files_are_bounded_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "UNDECLARED_BYTES_MAX", 300)
    path, sha256 = pack(folder, tmp_path / "m.tar")
    with pytest.raises(ModelError, match="more than 300 bytes of golden files"):
        unpack(path, sha256, tmp_path / "in")


def test_a_window_that_would_take_the_memory_is_refused(folder: Path, tmp_path: Path) -> None:
    options = zstandard.ZstdCompressionParameters(window_log=27, format=zstandard.FORMAT_ZSTD1)
    way = zstandard.ZstdCompressor(compression_params=options).compressobj()
    content = way.compress(tar(files_of(folder))) + way.flush()
    path, sha256 = put(tmp_path / "m.tar.zst", content)
    with pytest.raises(ModelError, match="no whole zstd"):
        unpack(path, sha256, tmp_path / "in")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "none", "."):
        with pytest.raises(ModelError, match="cannot be unpacked"):
            unpack(tmp_path / name, "0" * 64, tmp_path / "in")


def test_it_stops_when_nobody_waits_for_it(folder: Path, tmp_path: Path) -> None:
    path, sha256 = pack(folder, tmp_path / "m.tar")
    reads = itertools.count()
    with pytest.raises(ModelError, match="nobody waits"):
        halted = Unpacker(lambda _: None, lambda: next(reads) > 3)
        halted.unpack(path, tmp_path / "in", Wanted(sha256))


@given(data=st.data())
def test_any_damage_is_refused_or_changes_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = tmp_path_factory.mktemp("any")
    entries = files_of(install(box / "made", linear(), version=2))
    whole = bytearray(tar(entries))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    path, sha256 = put(box / "m.tar", bytes(whole))
    root = box / "box" / "in"
    try:
        made = unpack(path, sha256, root)
    except ModelError:
        pass
    else:
        assert made.is_relative_to(root)
    assert {one.name for one in box.iterdir()} <= {"made", "m.tar", "box"}
