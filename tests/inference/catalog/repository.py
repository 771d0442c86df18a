"""Small real models, and a repository to put them in."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

ROWS = "rows"


def opsets(*others: tuple[str, int], main: int = 18) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid("", main), *(helper.make_opsetid(d, v) for d, v in others)]


def linear(
    rows: str | int = ROWS, width: int = 4, opset: int = 18, weight: float = 2.0
) -> onnx.ModelProto:
    """y = relu(x @ w): x and y are [rows, width]."""
    weights = np.eye(width, dtype=np.float32) * weight
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Relu", ["h"], ["y"], name="cut"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=opsets(main=opset), ir_version=10)


def single(
    op: str, domain: str = "", imports: list[onnx.OperatorSetIdProto] | None = None, **more: Any
) -> onnx.ModelProto:
    """One node named `only`."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name="only", domain=domain, **more)],
        "single",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, 4])],
    )
    return helper.make_model(graph, opset_imports=imports or opsets(), ir_version=10)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install(
    root: Path, model: onnx.ModelProto, name: str = "m", version: int = 1, **said: Any
) -> Path:
    """A version as it should be; `said` stands in model.yaml. Its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    describe(folder, **said)
    return folder


def describe(folder: Path, **said: Any) -> None:
    """Write the model.yaml of what lies in a folder."""
    file = folder / "model.onnx"
    whole = {
        "name": folder.parent.name,
        "version": int(folder.name),
        "file": file.name,
        "sha256": sha256(file),
        "size_bytes": file.stat().st_size,
        **said,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(whole))


def pair(folder: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, str]:
    """Golden files, and how model.yaml names them."""
    (folder / "golden").mkdir(exist_ok=True)
    number = len(list((folder / "golden").iterdir())) // 2 + 1
    found = {}
    for key, kind, arrays in (("inputs", "in", inputs), ("outputs", "out", outputs)):
        path = folder / f"golden/{number}.{kind}.npz"
        np.savez(path, **arrays)
        found |= {key: f"golden/{path.name}", f"{key}_sha256": sha256(path)}
    return found
