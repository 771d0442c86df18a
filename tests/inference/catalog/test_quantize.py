"""INT8 versions: made of real models by the real tool, or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from agent.inference.catalog import Catalog, golden
from tests.inference.catalog.repository import install, linear, opsets, single

CHANCE = np.random.default_rng(1)


def initializer(name: str, *shape: int) -> onnx.TensorProto:
    spread = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
    return numpy_helper.from_array(
        (CHANCE.standard_normal(shape) * spread).astype(np.float32), name
    )


def graph(
    nodes: list[onnx.NodeProto], x: list[object], *weights: onnx.TensorProto
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    model = helper.make_model(made, opset_imports=opsets(), ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = initializer("w1", 16, 3, 3, 3), initializer("w2", 16, 16, 3, 3)
    return graph(nodes, ["rows", 3, 16, 16], *weights)


def products() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    return graph(nodes, ["rows", 64], initializer("w1", 64, 128), initializer("w2", 128, 64))


def quantize(root: Path, *words: str, which: str = "m/1") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent.inference.catalog.quantize", str(root), which, *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "method", "op"),
    [(convolutions(), "static", "QuantizeLinear"), (products(), "dynamic", "MatMulInteger")],
    ids=["convolutions", "products"],
)
def test_a_quantized_version_serves_like_any_other(
    tmp_path: Path, model: onnx.ModelProto, method: str, op: str
) -> None:
    install(tmp_path, model, licence="MIT", signature="model.sig")
    done = quantize(tmp_path, "--to", "2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["method"] == method
    assert report["size_ratio"] < 1
    assert 0 < report["error_rms"] < 0.1
    catalog = Catalog(tmp_path)
    made = catalog.newest("m")
    assert made.label == report["model"]
    catalog.check(made, "cpu")
    assert op in {node.op_type for node in onnx.load(made.path).graph.node}
    said = yaml.safe_load((made.folder / "model.yaml").read_text())
    assert said["licence"] == "MIT"
    assert "signature" not in said  # it was of another file
    assert said["quantized"]["of"] == catalog.verified("m", 1).label
    session = ort.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    for pair in golden(made):
        pair.judge({"y": session.run(["y"], pair.inputs)[0]})
    assert not list(tmp_path.glob(".quantize-*"))


def test_real_inputs_are_taken_and_named(tmp_path: Path) -> None:
    install(tmp_path / "models", products())
    calls = tmp_path / "calls"
    calls.mkdir()
    for i in range(3):
        np.savez(calls / f"{i}.npz", x=CHANCE.standard_normal((4, 64)).astype(np.float32))
    done = quantize(tmp_path / "models", "--to", "7", "--calibration", str(calls))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["cases"], report["inputs"]) == (3, f"of {calls}")
    assert "WARNING" not in done.stderr
    assert golden(Catalog(tmp_path / "models").verified("m", 7))[0].inputs["x"].shape == (4, 64)


def refused(root: Path, *words: str, which: str = "m/1") -> str:
    before = sorted(root.rglob("*"))
    done = quantize(root, *words, which=which)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "try: " in done.stderr
    assert sorted(root.rglob("*")) == before
    return done.stderr


def test_what_cannot_be_done_leaves_nothing_behind(tmp_path: Path) -> None:
    install(tmp_path, linear())
    install(tmp_path, single("Relu"), version=2)
    assert "1: is there already" in refused(tmp_path, "--to", "1")
    assert "there is no version 9" in refused(tmp_path, "--to", "4", which="m/9")
    assert "write NAME/VERSION" in refused(tmp_path, "--to", "4", which="m")
    assert "and there is none" in refused(tmp_path, "--to", "4", which="m/2")
    install(tmp_path, convolutions(), version=3)
    said = refused(tmp_path, "--to", "4", "--method", "dynamic", which="m/3")
    assert "dynamic quantization is for MatMul, Gemm, and there is none" in said
    assert "try: take --static" in said
    assert "INT8 is off by" in refused(tmp_path, "--to", "4", "--error-max", "0.000001")
    assert "no npz file there" in refused(tmp_path, "--to", "4", "--calibration", str(tmp_path))
    (tmp_path / "bad").mkdir()
    np.savez(tmp_path / "bad/1.npz", z=np.zeros(3))
    bad = str(tmp_path / "bad")
    assert "has z; the model takes x" in refused(tmp_path, "--to", "4", "--calibration", bad)


def test_without_onnx_it_says_what_to_install(tmp_path: Path) -> None:
    install(tmp_path, linear())
    code = (
        "import sys, runpy; sys.modules['onnx'] = None; "
        f"sys.argv = ['q', {str(tmp_path)!r}, 'm/1', '--to', '2']; "
        "runpy.run_module('agent.inference.catalog.quantize', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "quantizing needs onnx" in done.stderr
    assert "pip install 'holdfast[models]'" in done.stderr
