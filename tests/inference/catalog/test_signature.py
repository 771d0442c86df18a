"""Who vouches for a model: what a signature covers, and what breaks it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from agent.errors import ConfigError, ModelError
from agent.inference.catalog import Catalog, signature
from agent.inference.catalog import __main__ as catalog_command
from agent.inference.catalog.manifest import External, Manifest, Pair
from agent.protocol import signing
from tests.inference.catalog.repository import describe, install, linear, pair


def signed(root: Path, key: Path) -> str:
    """A version with a golden pair, signed by the command; the public key."""
    folder = install(root, linear())
    x = np.ones((1, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": 2 * x})], licence="MIT")
    return sign(folder, key)


def sign(folder: Path, key: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "agent.inference.catalog", "sign", str(folder), "--key", str(key)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    public: str = json.loads(done.stdout)["key"]
    return public


def test_a_signed_version_is_taken_and_says_by_whom(tmp_path: Path) -> None:
    public = signed(tmp_path / "models", tmp_path / "key")
    assert Catalog(tmp_path / "models", [public]).verified("m").signer == public
    bare = public.removeprefix(signing.PUBLIC)  # as a plain Base64 of the key
    assert Catalog(tmp_path / "models", [bare]).verified("m").signer == public
    assert Catalog(tmp_path / "models").verified("m").signer is None
    assert yaml.safe_load((tmp_path / "models/m/1/model.yaml").read_text())["licence"] == "MIT"


def test_an_unsigned_version_is_refused_where_one_must_sign(tmp_path: Path) -> None:
    key = signing.Key.kept(tmp_path / "key")
    install(tmp_path, linear())
    with pytest.raises(ModelError, match=r"no signature, and models\.signed_by asks") as caught:
        Catalog(tmp_path, [key.public]).verified("m")
    assert "holdfast models sign" in caught.value.hint


def test_another_signer_is_named(tmp_path: Path) -> None:
    public = signed(tmp_path / "models", tmp_path / "key")
    other = signing.Key.kept(tmp_path / "other")
    with pytest.raises(ModelError) as caught:
        Catalog(tmp_path / "models", [other.public]).verified("m")
    assert f"is by {public}, whom models.signed_by does not name" in str(caught.value)


def test_whatever_counts_breaks_the_signature(tmp_path: Path) -> None:
    root = tmp_path / "models"
    public = signed(root, tmp_path / "key")
    path = root / "m/1/model.yaml"
    text = path.read_text()
    path.write_text(text + "deterministic: true\n")
    with pytest.raises(ModelError, match="does not hold"):
        Catalog(root, [public]).verified("m")
    path.write_text(text)
    Catalog(root, [public]).verified("m")
    # Another version of the same content is not what was signed.
    (root / "m/1").rename(root / "m/2")
    (root / "m/2/model.yaml").write_text(text.replace("version: 1", "version: 2"))
    with pytest.raises(ModelError, match="does not hold"):
        Catalog(root, [public]).verified("m")


def test_each_part_stands_in_what_is_signed() -> None:
    files = {"model.yaml": "a" * 64, "model.onnx": "b" * 64}
    whole = signature.canonical("m", 1, files)
    assert whole == (
        f"holdfast model 1\nm\n1\n{'b' * 64} model.onnx\n{'a' * 64} model.yaml\n".encode()
    )
    assert whole == signature.canonical("m", 1, dict(reversed(files.items())))
    manifest = Manifest(
        *("m", 1, "model.onnx", "b" * 64, 9),
        external=[External("w.bin", "c" * 64, 9)],
        golden=[Pair("i.npz", "o.npz", "d" * 64, "e" * 64)],
    )
    files |= {"w.bin": "c" * 64, "i.npz": "d" * 64, "o.npz": "e" * 64}
    signed = hashlib.sha256(signature.canonical("m", 1, files)).digest()
    assert signature.digest(manifest, "a" * 64) == signed


@pytest.mark.parametrize("name", ["../model.sig", "a/b", "model.yaml", "model.onnx", ".."])
def test_a_signature_is_written_beside_the_model_alone(tmp_path: Path, name: str) -> None:
    folder = install(tmp_path, linear(), signature=name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="is no name of a file beside it"):
        catalog_command.sign(folder, tmp_path.parent / "key")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signature_of_a_bundle_is_none_of_a_model(tmp_path: Path) -> None:
    key = signing.Key.kept(tmp_path / "key")
    digest = bytes(32)
    assert signing.is_signed(key.public, digest, key.sign(digest))
    assert not signing.is_signed(key.public, digest, key.sign(digest), signing.MODEL)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"one\n", b"hf1pub:AAAA x\n"])
def test_a_damaged_signature_is_none(tmp_path: Path, content: bytes) -> None:
    public = signed(tmp_path / "models", tmp_path / "key")
    (tmp_path / "models/m/1/model.sig").write_bytes(content)
    with pytest.raises(ModelError):
        Catalog(tmp_path / "models", [public]).verified("m")


def test_a_signature_from_elsewhere_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "models"
    public = signed(root, tmp_path / "key")
    (root / "m/1/model.sig").rename(tmp_path / "model.sig")
    (root / "m/1/model.sig").symlink_to(tmp_path / "model.sig")
    with pytest.raises(ModelError, match="leads out of the version's folder"):
        Catalog(root, [public]).verified("m")


def test_what_triton_configures_cannot_be_signed(tmp_path: Path) -> None:
    folder = install(tmp_path, linear())
    (folder / "model.yaml").unlink()
    (folder / "config.pbtxt").write_text("")
    key = signing.Key.kept(tmp_path / "key")
    with pytest.raises(ModelError, match=r"config\.pbtxt cannot be signed"):
        Catalog(tmp_path, [key.public]).verified("m")


def test_a_key_that_is_none_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.signed_by\[1\]"):
        key = signing.Key.kept(tmp_path / "key")
        Catalog(tmp_path, [key.public, "sesame"])
