"""A real agent that a program written for Triton talks to: its models, and where it listens."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import yaml
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bench import models
from tests.inference.house import STATE
from tests.outside import ROOT, Device, free_port, until

Array = NDArray[Any]


class Kind(NamedTuple):
    """A dtype: ONNX's, and numbers of it, the extremes too."""

    onnx: int
    values: Array


def _ends(kind: Any) -> Array:
    bounds = np.iinfo(kind) if np.dtype(kind).kind in "iu" else np.finfo(kind)
    return np.array([[bounds.min, bounds.max, 0, 1]], kind)


KINDS = {
    "BOOL": Kind(TensorProto.BOOL, np.array([[True, False, False, True]])),
    "UINT8": Kind(TensorProto.UINT8, _ends(np.uint8)),
    "UINT16": Kind(TensorProto.UINT16, _ends(np.uint16)),
    "UINT32": Kind(TensorProto.UINT32, _ends(np.uint32)),
    "UINT64": Kind(TensorProto.UINT64, _ends(np.uint64)),
    "INT8": Kind(TensorProto.INT8, _ends(np.int8)),
    "INT16": Kind(TensorProto.INT16, _ends(np.int16)),
    "INT32": Kind(TensorProto.INT32, _ends(np.int32)),
    "INT64": Kind(TensorProto.INT64, _ends(np.int64)),
    "FP16": Kind(TensorProto.FLOAT16, _ends(np.float16)),
    "FP32": Kind(TensorProto.FLOAT, _ends(np.float32)),
    "FP64": Kind(TensorProto.DOUBLE, _ends(np.float64)),
    "BF16": Kind(TensorProto.BFLOAT16, np.array([[1.5, -2, 3e38, 1e-38]], bfloat16)),
    "BYTES": Kind(TensorProto.STRING, np.array([[b"a", b"", "\N{SNOWMAN}".encode(), b"d"]], "O")),
}
SCOPES = ["read", "infer", "operate"]


def mixed() -> onnx.ModelProto:
    """FP32 `a` and BYTES `b` and INT64 `c`, and the same three again."""
    network = models.Network(1)
    kinds = {"a": TensorProto.FLOAT, "b": TensorProto.STRING, "c": TensorProto.INT64}
    for name in kinds:
        network.node("Identity", [name], f"{name}_out")
    given = [helper.make_tensor_value_info(one, kind, ["n", 2]) for one, kind in kinds.items()]
    made = [
        helper.make_tensor_value_info(f"{one}_out", kind, ["n", 2]) for one, kind in kinds.items()
    ]
    return network.model("mixed", given, made)


class Triton(Device):
    """The agent."""

    def __init__(self, folder: Path) -> None:
        root = folder / "models"
        shutil.copytree(ROOT / "models/speech", root / "speech")
        for name, kind in KINDS.items():
            models.write(root, f"same_{name.lower()}", models.identity(kind.onnx))
        models.write(root, "mixed", mixed())
        models.write(root, "accumulator", models.accumulator(), **STATE)
        models.write(root, "sure", models.identity(), deterministic=True)
        models.write(root, "loop", models.loop())
        models.write(root, "picked", models.identity())
        models.write(root, "picked", models.identity(), version=2)
        models.write(root, "nobodys", models.identity())
        names = [path.name for path in root.iterdir() if path.name not in ("speech", "nobodys")]
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        super().__init__(
            folder,
            {
                "models": {"path": str(root)},
                "domains": {"tensors": {"models": sorted(names), "threads": 1}},
            },
        )
        whole = yaml.safe_load(self.config.read_text())
        whole["api"] |= {"port": self.port, "loopback_scopes": SCOPES}
        self.config.write_text(yaml.safe_dump(whole))

    def worker(self) -> int:
        """The process that runs the models, once it is ready."""

        def pid() -> int | None:
            domain = self.status()["domains"]["tensors"]
            return domain["pid"] if domain["ready"] else None

        found = until(pid, "the domain is ready")
        assert found is not None
        return found
