"""What is let in from the disk, and what is kept out, with what is said about it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from agent.cli.models import _with_service
from agent.cli.models_view import listed, verdicts
from agent.errors import ModelError
from agent.inference.catalog import Catalog, TensorSpec, golden
from agent.inference.catalog.__main__ import ls, verify
from tests.host.lowly import as_nobody
from tests.inference.catalog.repository import (
    describe,
    install,
    linear,
    opsets,
    pair,
    sha256,
    single,
)
from tests.outside import ROOT

X, Y = TensorSpec("x", "FP32", [-1, 4]), TensorSpec("y", "FP32", [-1, 4])


def refused(root: Path, name: str = "m", version: int | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Catalog(root).verified(name, version)
    assert caught.value.hint
    return caught.value


def test_the_model_that_ships_is_verified() -> None:
    catalog = Catalog(ROOT / "models")
    model = catalog.newest("speech")
    catalog.check(model, "cpu")
    assert model.label == f"speech/1@{model.sha256[:12]}"
    assert model.options == {
        "rate_hz": 16_000,
        "hop_samples": 256,
        "window_samples": 512,
        "model": str(ROOT / "models/speech/1/model.onnx"),
    }
    assert "speech" in catalog.names()
    assert "recipes" not in catalog.names()


def test_what_the_manifest_leaves_open_the_file_says(tmp_path: Path) -> None:
    install(tmp_path, linear())
    manifest = Catalog(tmp_path).verified("m").manifest
    assert (manifest.inputs, manifest.outputs, manifest.batching) == ([X], [Y], True)


@pytest.mark.parametrize("rows", [1, 8])
def test_without_an_open_first_axis_nothing_is_batched(tmp_path: Path, rows: int) -> None:
    install(tmp_path, linear(rows=rows))
    assert Catalog(tmp_path).verified("m").manifest.batching is False
    install(tmp_path, linear(rows=rows), batching=True)
    assert "without a batch axis" in str(refused(tmp_path))


def test_two_open_axes_of_different_names_are_not_one_batch(tmp_path: Path) -> None:
    model = linear()
    other = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["length", 2])
    model.graph.input.append(other)
    install(tmp_path, model)
    assert Catalog(tmp_path).verified("m").manifest.batching is False
    install(tmp_path, model, batching=True)
    assert Catalog(tmp_path).verified("m").manifest.batching is True


def test_the_newest_is_the_highest_number(tmp_path: Path) -> None:
    for version in (1, 9, 10):
        install(tmp_path, linear(), version=version)
    for other in ("2.part", "007", "x", "²"):
        (tmp_path / "m" / other).mkdir()
    catalog = Catalog(tmp_path)
    assert catalog.versions("m") == [1, 9, 10]
    assert catalog.newest("m").manifest.version == 10
    assert catalog.verified("m", 9).manifest.version == 9
    assert catalog.names() == ["m"]
    assert catalog.versions("absent") == []


def test_a_folder_that_is_no_version_yet_is_gone_past_but_a_half_one_is_not(
    tmp_path: Path,
) -> None:
    install(tmp_path, linear(), version=1)
    (tmp_path / "m/2").mkdir()
    (tmp_path / "m/2/.model.onnx.tmp").write_bytes(b"half")
    assert Catalog(tmp_path).newest("m").manifest.version == 1
    (tmp_path / "m/2/model.onnx").write_bytes(b"half")
    assert "there is no model.yaml, and no config.pbtxt" in str(refused(tmp_path))


def spoil_digest(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def cut_off(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-20])


def cut_off_but_declared(folder: Path) -> None:
    cut_off(folder)
    describe(folder)


def of_another_name(folder: Path) -> None:
    describe(folder, name="other")


def linked_out(folder: Path) -> None:
    outside = folder.parent.parent.parent / "outside.onnx"
    shutil.move(folder / "model.onnx", outside)
    (folder / "model.onnx").symlink_to(outside)


def manifest_linked_out(folder: Path) -> None:
    outside = folder.parent.parent.parent / "outside.yaml"
    shutil.move(folder / "model.yaml", outside)
    (folder / "model.yaml").symlink_to(outside)


def a_pipe(folder: Path) -> None:
    import os

    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


# Each line is nine of the one before: gigabytes, were they made.
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{f'*a{i - 1},' * 9}]}}\n" for i in range(1, 12)
)


def said_too(folder: Path, lines: str) -> None:
    """More in its model.yaml."""
    with (folder / "model.yaml").open("a") as file:
        file.write(lines)


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (spoil_digest, "sha256 is"),
    (cut_off, "bytes, expected"),
    (cut_off_but_declared, "cut off"),
    (of_another_name, "says other/1, lies in"),
    (linked_out, "leads out of the version's folder"),
    (manifest_linked_out, "leads out of the version's folder"),
    (a_pipe, "it is a pipe"),
    (lambda f: (f / "model.onnx").unlink(), "is not there"),
    (lambda f: describe(f, file="../1/model.onnx"), "no name of a file below"),
    (lambda f: describe(f, file="/etc/passwd"), "no name of a file below"),
    (lambda f: describe(f, file="a\nb"), "no name of a file below"),
    (lambda f: describe(f, file="."), "it is a folder"),
    (lambda f: (f / "model.yaml").write_text("name: [m"), "not YAML"),
    (lambda f: (f / "model.yaml").write_text("- a\n- b\n"), "expected keys such as"),
    (lambda f: said_too(f, ALIASES), "more than 200,000 values with its aliases"),
    (lambda f: said_too(f, MERGED), "more than 200,000 values with its aliases"),
    (lambda f: said_too(f, "options: &a {x: *a}"), "or one within itself"),
    (lambda f: said_too(f, 'fallback: "\\ud800"'), "surrogates not allowed"),
    (lambda f: describe(f, options={"x": 1 << 70}), "options: can't serialize ints"),
    (lambda f: describe(f, sha256="ABC"), "sha256: expected 64 digits"),
    (lambda f: describe(f, version="one"), "version: expected"),
    (lambda f: describe(f, engine="torch"), "engine: invalid enum value 'torch'"),
    (lambda f: describe(f, tolerence={"rtol": 0.1}), "tolerence: unknown key"),
    (lambda f: describe(f, tolerance={"relative": 0.1}), "tolerance: object contains unknown"),
    (lambda f: describe(f, inputs=[{"name": "x", "dtype": "FLOAT", "shape": []}]), "inputs[0]"),
    (lambda f: describe(f, engine="speech"), "options.rate_hz: is missing"),
    (lambda f: describe(f, state=[{"input": "s", "output": "y"}]), "there is no input 's'"),
    (lambda f: describe(f, state=[{"input": "x", "output": "t"}]), "there is no output 't'"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=[said for _, said in SPOILT])
def test_a_spoilt_version_is_refused_and_says_why(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = install(tmp_path / "models", linear())
    spoil(folder)
    error = refused(tmp_path / "models")
    assert said in str(error)
    assert str(tmp_path) in str(error)


def test_a_slip_in_a_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    install(tmp_path, linear(), tolerence={"rtol": 0.1})
    assert refused(tmp_path).hint == "did you mean tolerance?"
    install(tmp_path, linear(), licence="MIT", attribution=["somebody"], quantized={"of": "m"})
    Catalog(tmp_path).verified("m")


def test_numbers_as_people_write_them_are_taken(tmp_path: Path) -> None:
    folder = install(tmp_path, linear())
    with (folder / "model.yaml").open("a") as file:
        file.write("tolerance: {rtol: 1e-3, atol: 0}\n")
    assert Catalog(tmp_path).verified("m").manifest.tolerance.rtol == 0.001


@pytest.mark.parametrize(
    ("key", "specs", "said"),
    [
        ("inputs", [("x", "FP32", [-1, 5])], "'x' is FP32 [-1, 4]; the manifest says FP32 [-1, 5]"),
        ("inputs", [("x", "INT64", [-1, 4])], "the manifest says INT64 [-1, 4]"),
        ("inputs", [("z", "FP32", [-1, 4])], "inputs are x; the manifest says z"),
        ("outputs", [("y", "FP32", [4])], "output 'y' is FP32 [-1, 4]"),
    ],
)
def test_a_manifest_that_says_other_than_the_file_is_refused(
    tmp_path: Path, key: str, specs: list[tuple[str, str, list[int]]], said: str
) -> None:
    written = [{"name": n, "dtype": d, "shape": s} for n, d, s in specs]
    install(tmp_path, linear(), **{key: written})
    assert said in str(refused(tmp_path))


def test_a_dimension_that_the_manifest_closes_is_closed(tmp_path: Path) -> None:
    spec = {"name": "x", "dtype": "FP32", "shape": [8, 4]}
    install(tmp_path, linear(), inputs=[spec])
    manifest = Catalog(tmp_path).verified("m").manifest
    assert manifest.inputs[0].shape == [8, 4]
    assert manifest.batching is False


def test_what_is_no_tensor_cannot_be_served(tmp_path: Path) -> None:
    model = linear()
    model.graph.output.append(
        helper.make_value_info(
            "p", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2]))
        )
    )
    install(tmp_path, model)
    assert "output 'p' is a sequence, expected a tensor" in str(refused(tmp_path))


def external(root: Path, location: str = "weights.bin") -> Path:
    folder = root / "m/1"
    folder.mkdir(parents=True)
    model = linear()
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    if location != "weights.bin":
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def declared(path: Path) -> dict[str, object]:
    return {"file": path.name, "sha256": sha256(path), "size_bytes": path.stat().st_size}


def test_external_weights_are_checked_like_the_model(tmp_path: Path) -> None:
    folder = external(tmp_path)
    describe(folder)
    assert "weights.bin, which model.yaml does not declare" in str(refused(tmp_path))
    describe(folder, external=[declared(folder / "weights.bin")])
    Catalog(tmp_path).verified("m")
    (folder / "weights.bin").write_bytes(bytes(64))
    assert "weights.bin: sha256 is" in str(refused(tmp_path))


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "link.bin", "absent.bin"])
def test_external_weights_lie_in_the_versions_folder(tmp_path: Path, location: str) -> None:
    folder = external(tmp_path, location)
    (tmp_path / "m/outside.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "m/outside.bin")
    describe(folder)
    assert "external data" in str(refused(tmp_path))


def test_golden_files_are_guarded_too(tmp_path: Path) -> None:
    folder = install(tmp_path, linear())
    x = np.ones((2, 4), np.float32)
    said = pair(folder, {"x": x}, {"y": 2 * x})
    describe(folder, golden=[said])
    assert len(golden(Catalog(tmp_path).verified("m"))) == 1
    describe(folder, golden=[{**said, "inputs": "../../m/1/golden/1.in.npz"}])
    assert "golden[0].inputs" in str(refused(tmp_path))
    describe(folder, golden=[said])
    (folder / said["outputs"]).write_bytes(b"other")
    assert "(model.yaml: golden[0].outputs)" in str(refused(tmp_path))


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "", "a/b", "a" * 200])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no name of a model"):
        Catalog(tmp_path).verified(name)


def test_a_version_that_is_a_link_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    install(tmp_path / "elsewhere", linear())
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / "models/m/1").symlink_to(tmp_path / "elsewhere/m/1")
    assert "leads out of the models' folder" in str(refused(tmp_path / "models"))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no version of model 'm'" in str(refused(tmp_path))
    install(tmp_path, linear(), version=3)
    error = refused(tmp_path, version=2)
    assert "there is no version 2" in str(error)
    assert error.hint == "ask for one of 3"
    with pytest.raises(ModelError, match="cannot be read"):
        Catalog(tmp_path / "nowhere").names()


def test_a_pointer_of_git_lfs_is_told_from_a_model(tmp_path: Path) -> None:
    folder = install(tmp_path, linear())
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    describe(folder)
    assert refused(tmp_path).hint == "git lfs pull"


def test_a_model_is_checked_for_a_device_before_it_is_loaded(tmp_path: Path) -> None:
    install(tmp_path, single("Whirl", "com.acme", opsets(("com.acme", 3))))
    catalog = Catalog(tmp_path)
    with pytest.raises(ModelError, match=r"Whirl of com\.acme, opset 3 \(node 'only'\)"):
        catalog.check(catalog.verified("m"), "cpu")


def test_a_version_that_this_user_may_not_read_is_refused_alone() -> None:
    """As a copy by root is, with a strict umask."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for version in (1, 2):
            install(root, linear(), version=version)
        root.chmod(0o755)
        (root / "m/2").chmod(0o700)

        def act() -> dict[str, object]:
            catalog = Catalog(root)
            with pytest.raises(ModelError, match=r"m/2/model\.yaml: cannot be read: Permission"):
                catalog.verified("m", 2)
            return {"claimed": list(catalog.claimed("m")), "whole": catalog.verified("m", 1).label}

        found = as_nobody(act)
    assert found["claimed"] == [2, 1]
    assert str(found["whole"]).startswith("m/1@")


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["unread", "not entered"])
def test_a_model_whose_folder_cannot_be_read_is_named_and_hides_no_other(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for model in ("a", "m", "z"):
            install(root, linear(), model)
        root.chmod(0o755)
        (root / "m").chmod(mode)

        def act() -> dict[str, object]:
            catalog = Catalog(root)
            with pytest.raises(ModelError, match="m: cannot be read"):
                catalog.versions("m")
            return {"ls": ls(catalog)["models"], "verify": verify(catalog, "", [])}

        found: Any = as_nobody(act)
    for rows in (found["ls"], found["verify"]["models"]):
        assert [(row["name"], row["version"]) for row in rows] == [("a", 1), ("m", None), ("z", 1)]
        assert "m: cannot be read: Permission denied" in rows[1]["error"]
        assert rows[1]["hint"]
    assert (found["verify"]["good"], found["verify"]["refused"]) == (2, 1)
    listed({"models": _with_service(found["ls"], {"m": {"version": 1, "previous": None}})})
    verdicts(found["verify"])


def test_a_version_that_leads_elsewhere_is_refused_alone(tmp_path: Path) -> None:
    install(tmp_path / "models", linear())
    install(tmp_path / "away", linear(), version=2)
    (tmp_path / "models/m/2").symlink_to(tmp_path / "away/m/2")
    catalog = Catalog(tmp_path / "models")
    assert list(catalog.claimed("m")) == [2, 1]
    with pytest.raises(ModelError, match="leads out of the models' folder"):
        catalog.verified("m", 2)
    assert catalog.verified("m", 1)


def test_aliases_in_a_manifest_are_followed(tmp_path: Path) -> None:
    folder = install(tmp_path, linear())
    said_too(folder, "licence: &a [MIT]\noptions: {one: *a, two: *a}\n")
    assert Catalog(tmp_path).newest("m").manifest.options == {"one": ["MIT"], "two": ["MIT"]}


def test_links_in_a_circle_are_no_model_and_hide_no_other(tmp_path: Path) -> None:
    install(tmp_path, linear())
    (tmp_path / "circle").symlink_to("circle")
    assert Catalog(tmp_path).names() == ["m"]
