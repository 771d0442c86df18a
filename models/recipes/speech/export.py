"""From trained weights to the file that ships: ONNX, INT8 weights and activations, manifest.

Only the matrix products are quantised (U8 activations, S8 weights per channel): quantising the
state in and out as well costs accuracy and saves nothing.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from .framing import Stream
from .layout import BINS, HOP, RATE_HZ, WINDOW, Layout, layout, parser
from .mixtures import Mixer
from .network import STATE, Network, StreamingNetwork
from .runtime import calls, session
from .sounds import MUSIC, SOURCES

SEED = 31337
OPSET = 18
SCENES = 48  # training scenes that the ranges are measured on
SCENE_HOPS = 625  # 10 s
EVERY = 8  # every so many hops, one call is measured
METHOD = CalibrationMethod.MinMax
KEPT_FLOAT = ("speech",)  # layers left in FP32: one output each, nothing to save


def stripped(path: Path) -> None:
    """Take out the exporter's notes: they repeat the source and the paths of this machine."""
    model = onnx.load(path)
    model.graph.ClearField("metadata_props")
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        *model.graph.value_info,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def write_float(work: Path) -> Path:
    """Export the trained weights as FP32 ONNX with a dynamic number of streams."""
    network = Network()
    network.load_state_dict(torch.load(work / "network.pt", weights_only=True))
    streams = torch.export.Dim("N", min=1, max=4096)
    program = torch.onnx.export(
        StreamingNetwork(network).eval(),
        (torch.randn(2, 2, BINS), torch.rand(2, STATE)),
        input_names=["spectrum", "state"],
        output_names=["clean", "speech", "state_out"],
        dynamic_shapes=({0: streams}, {0: streams}),
        dynamo=True,
        opset_version=OPSET,
    )
    path = work / "float.onnx"
    program.save(str(path), external_data=False)
    stripped(path)
    return path


class Frames(CalibrationDataReader):
    """Calls of the FP32 model on training scenes, with the states that really occur."""

    def __init__(self, work: Path, model: Path) -> None:
        mixer = Mixer(work, "train", SEED)
        noisy = np.stack([mixer.scene(SCENE_HOPS * HOP).noisy for _ in range(SCENES)])
        run = calls(session(model), noisy, Stream(SCENES))
        self.left = iter([call for hop, call in enumerate(run) if hop % EVERY == 0])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of the next call, None at the end."""
        call = next(self.left, None)
        return call and {"spectrum": call.spectrum, "state": call.state}


def layer_nodes(model: Path, layers: tuple[str, ...]) -> list[str]:
    """Names of the graph's matrix products that use the weights of the given layers."""
    graph = onnx.load(model).graph
    weights = {f"{layer}.weight" for layer in layers}
    return [node.name for node in graph.node if weights & set(node.input)]


def write_quantised(work: Path, model: Path) -> Path:
    """Quantise the FP32 model to INT8 (QDQ)."""
    prepared, path = work / "prepared.onnx", work / "int8.onnx"
    # Symbolic shape inference fails on ReduceMax, and the plain one finds all shapes.
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Frames(work, prepared),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Gemm", "MatMul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # 7 bit weights: U8S8 overflows on x86 without VNNI otherwise
        nodes_to_exclude=layer_nodes(prepared, KEPT_FLOAT),
        calibrate_method=METHOD,
        # Products hand on FP32 sums: what follows is element-wise and would only round again.
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )
    return path


def manifest(content: bytes) -> dict[str, object]:
    """What `model.yaml` says about the model file."""
    trained = [source for source in SOURCES if source.split == "train"]
    return {
        "name": "speech",
        "version": 1,
        "engine": "speech",
        "file": "model.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "options": {"rate_hz": RATE_HZ, "hop_samples": HOP, "window_samples": WINDOW},
        "licence": "CC-BY-SA-3.0",
        "attribution": [
            f"{source.speaker}, {source.languages} ({source.licence}; "
            f"Debian package {source.package})"
            for source in trained
        ]
        + [f"Macroform, Manolo Camp, music as noise (CC-BY-SA-3.0; Debian package {MUSIC})"],
    }


def publish(places: Layout, model: Path) -> None:
    """Put the model and its manifest in place, each in one step."""
    content = model.read_bytes()
    text = yaml.safe_dump(manifest(content), sort_keys=False, width=100)
    for name, data in (("model.onnx", content), ("model.yaml", text.encode())):
        temporary = places.model / f".{name}.new"
        temporary.write_bytes(data)
        temporary.rename(places.model / name)


def main() -> None:
    """Export, quantise and put the model in place."""
    places = layout(parser(main.__doc__).parse_args())
    publish(places, write_quantised(places.work, write_float(places.work)))


if __name__ == "__main__":
    main()
