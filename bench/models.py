"""Small ONNX models, made from a seed: what the measurements serve, and what tests try to break.

`python -m bench.models FOLDER` writes `tiny`, `cnn` and `cnn2` (the same) below FOLDER, as a model
repository; `python -m bench.models FOLDER NAME...` writes those that are named.

tiny         [N, 64] -> Gemm, Relu, Gemm -> [N, 10]: some microseconds, so that all else shows
cnn          [N, 3, 224, 224] -> [N, 1000], in the form of MobileNetV2: some milliseconds
identity     the input again, of any type
accumulator  (x, state) -> (y, state_out): the sum of all x so far
not_numbers  the logarithm of the input: NaN for what is below zero
loop         as many turns of a matrix product as its input says: runs as long as one likes
hog          fills as many bytes as its input says, and keeps them, since its session does

The weights are random, so the answers mean nothing; the work is that of a real network. One seed
gives one file, byte for byte.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Model = onnx.ModelProto
OPSET, IR_VERSION = 17, 8  # what every ONNX Runtime of the last years reads
SEED = 20_261_121
TINY_INPUTS, TINY_HIDDEN, TINY_OUTPUTS = 64, 64, 10
CNN_SIDE, CNN_CLASSES, CNN_LAST = 224, 1000, 1280
CNN_FIRST = 24
CNN_STAGES = [  # expansion, channels, blocks, stride of the first: MobileNetV2 of width 0.75
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 24, 3, 2),
    (6, 48, 4, 2),
    (6, 72, 3, 1),
    (6, 120, 3, 2),
    (6, 240, 1, 1),
]
LOOP_SIDE = 128  # of the square matrix that one turn multiplies


class Network:
    """A graph in the making: nodes one after the other, and their random weights."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str | None = None, **settings: Any) -> str:
        """Append an operator; the name of its output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **settings))
        return output

    def constant(self, values: NDArray[Any]) -> str:
        """A tensor that is part of the model; its name."""
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int) -> str:
        """Random weights that keep the size of the signal: He's, over all axes but the first."""
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def bias(self, size: int) -> str:
        """Small random ones."""
        return self.constant((self._random.standard_normal(size) * 0.01).astype(np.float32))

    def gemm(self, values: str, inputs: int, outputs: int, output: str | None = None) -> str:
        """A fully connected layer."""
        weights = [self.weight(outputs, inputs), self.bias(outputs)]
        return self.node("Gemm", [values, *weights], output, transB=1)

    def conv(self, values: str, inputs: int, outputs: int, side: int, **how: int) -> str:
        """A convolution of `stride` and `group`, without an activation."""
        group, stride = how.get("group", 1), how.get("stride", 1)
        settings: dict[str, Any] = {
            "group": group,
            "strides": [stride] * 2,
            "pads": [side // 2] * 4,
        }
        weights = [self.weight(outputs, inputs // group, side, side), self.bias(outputs)]
        return self.node("Conv", [values, *weights], kernel_shape=[side, side], **settings)

    def relu6(self, values: str) -> str:
        """Values below 0 and above 6 cut off."""
        bounds = [self.constant(np.float32(bound)) for bound in (0, 6)]  # type: ignore[arg-type]
        return self.node("Clip", [values, *bounds])

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> Model:
        """The finished model, checked by the onnx package."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self._weights)
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(made)
        return made


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A float32 input or output; an axis with a name is dynamic."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def tiny(seed: int = SEED) -> Model:
    """Two small fully connected layers."""
    network = Network(seed)
    hidden = network.node("Relu", [network.gemm("x", TINY_INPUTS, TINY_HIDDEN)])
    network.gemm(hidden, TINY_HIDDEN, TINY_OUTPUTS, "y")
    return network.model("tiny", [floats("x", "n", TINY_INPUTS)], [floats("y", "n", TINY_OUTPUTS)])


def cnn(seed: int = SEED) -> Model:
    """Inverted residual blocks as those of MobileNetV2, batch normalisation folded away."""
    network = Network(seed)
    channels = CNN_FIRST
    values = network.relu6(network.conv("x", 3, channels, 3, stride=2))
    for expansion, outputs, blocks, stride in CNN_STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            values = _inverted_residual(network, values, channels, outputs, expansion, step)
            channels = outputs
    values = network.relu6(network.conv(values, channels, CNN_LAST, 1))
    pooled = network.node("Flatten", [network.node("GlobalAveragePool", [values])])
    network.gemm(pooled, CNN_LAST, CNN_CLASSES, "y")
    pictures = floats("x", "n", 3, CNN_SIDE, CNN_SIDE)
    return network.model("cnn", [pictures], [floats("y", "n", CNN_CLASSES)])


def _inverted_residual(
    network: Network, values: str, inputs: int, outputs: int, expansion: int, stride: int
) -> str:
    """Widen, filter each channel by itself, narrow; added to what came in where it fits."""
    inner, wide = values, inputs * expansion
    if expansion != 1:
        inner = network.relu6(network.conv(inner, inputs, wide, 1))
    inner = network.relu6(network.conv(inner, wide, wide, 3, group=wide, stride=stride))
    narrow = network.conv(inner, wide, outputs, 1)
    if stride != 1 or inputs != outputs:
        return narrow
    return network.node("Add", [values, narrow])


def identity(dtype: int = TensorProto.FLOAT, size: int = 4) -> Model:
    """What comes in goes out; `dtype` is one of onnx.TensorProto."""
    network = Network(SEED)
    network.node("Identity", ["x"], "y")
    ends = [helper.make_tensor_value_info(name, dtype, ["n", size]) for name in "xy"]
    return network.model("identity", ends[:1], ends[1:])


def accumulator(size: int = 4) -> Model:
    """A stateful one: y = state_out = state + x."""
    network = Network(SEED)
    network.node("Identity", [network.node("Add", ["x", "state"], "y")], "state_out")
    return network.model(
        "accumulator",
        [floats("x", "n", size), floats("state", "n", size)],
        [floats("y", "n", size), floats("state_out", "n", size)],
    )


def not_numbers(size: int = 4) -> Model:
    """A model whose answers to numbers below zero are none."""
    network = Network(SEED)
    network.node("Log", ["x"], "y")
    return network.model("not_numbers", [floats("x", "n", size)], [floats("y", "n", size)])


def loop(side: int = LOOP_SIDE) -> Model:
    """Input `turns`, int64 [1]: so many products of a matrix with itself, as no run may take."""
    network, body = Network(SEED), Network(SEED)
    body.node("Identity", ["going"], "going_on")
    body.node("Tanh", [body.node("MatMul", ["held", "held"])], "held_on")
    turn = helper.make_graph(
        body.nodes,
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            floats("held", side, side),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            floats("held_on", side, side),
        ],
    )
    going = network.constant(np.array(True))
    count = network.node("Squeeze", ["turns"])
    held = network.node("Loop", [count, going, network.weight(side, side)], body=turn)
    network.node("ReduceMean", [held], "y", keepdims=0)
    turns = helper.make_tensor_value_info("turns", TensorProto.INT64, [1])
    return network.model("loop", [turns], [floats("y")])


def hog() -> Model:
    """Input `bytes`, int64 [1]: memory of that size, filled; its first byte, if any, comes back."""
    network = Network(SEED)
    one = helper.make_tensor("one", TensorProto.UINT8, [1], [1])
    filled = network.node("ConstantOfShape", ["bytes"], value=one)
    first = [network.constant(np.array([bound])) for bound in (0, 1)]
    network.node("Slice", [filled, *first], "y")
    size = helper.make_tensor_value_info("bytes", TensorProto.INT64, [1])
    answer = helper.make_tensor_value_info("y", TensorProto.UINT8, ["n"])
    return network.model("hog", [size], [answer])


SERVED: dict[str, Callable[[], Model]] = {"tiny": tiny, "cnn": cnn, "cnn2": cnn}
MADE = SERVED | {"loop": loop, "hog": hog}


def write(root: Path, name: str, model: Model, version: int = 1, **more: Any) -> Path:
    """Put it into a model repository with its model.yaml; `more` are further keys. Its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    content = model.SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(content)
    manifest = {
        "name": name,
        "version": version,
        "engine": "onnx",
        "file": "model.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest | more, sort_keys=False))
    return folder


def write_triton(root: Path, name: str, model: Model, batch_max: int = 8) -> Path:
    """The same in Triton's form: no model.yaml, but a config.pbtxt above the version."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(cast(bytes, model.SerializeToString(deterministic=True)))
    sides = {"input": model.graph.input, "output": model.graph.output}
    ends = [f"{side} [\n{_pbtxt(values)}\n]\n" for side, values in sides.items()]
    head = f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {batch_max}\n'
    (root / name / "config.pbtxt").write_text(head + "".join(ends))
    return folder


def _pbtxt(values: Iterable[onnx.ValueInfoProto]) -> str:
    """Inputs or outputs of config.pbtxt; the batch axis, the first, is not part of its `dims`."""
    short = {"FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64"}
    lines = []
    for value in values:
        tensor = value.type.tensor_type
        kind = TensorProto.DataType.Name(tensor.elem_type)
        dims = [axis.dim_value or -1 for axis in tensor.shape.dim][1:]
        named = f'name: "{value.name}", data_type: TYPE_{short.get(kind, kind)}, dims: {dims}'
        lines.append(f"  {{ {named} }}")
    return ",\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MADE))
    parser.add_argument("--triton", action="store_true", help="with config.pbtxt, no model.yaml")
    asked = parser.parse_args()
    if unknown := set(asked.names) - MADE.keys():
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MADE)}")
    for name in asked.names or SERVED:
        (write_triton if asked.triton else write)(asked.folder, name, MADE[name]())


if __name__ == "__main__":
    main()
