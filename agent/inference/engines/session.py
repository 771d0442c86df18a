"""An ONNX Runtime session, opened as a domain wants it, or refused with the reason."""

from collections.abc import Iterable
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from agent.errors import ModelError
from agent.inference.engines.tensors import ORT_TYPES
from agent.inference.wire import Load, Setup, Tensor

REFUSALS = (  # what ONNX Runtime raises about a model; they have no base class of their own
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoSuchFile,
    refusals.NotImplemented,
    refusals.RuntimeException,
)
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


def opened(load: Load, setup: Setup) -> ort.InferenceSession:
    """A session on the first device there is. Raises ModelError.

    Asked for a device that is not there, ONNX Runtime runs on the CPU without a word: read the
    execution provider from the session, as `Loaded.ep` does.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread waits on a core that another domain may need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(load.path, options, providers=list(_providers(setup)))
    except REFUSALS as error:
        raise ModelError(f"{load.path}: ONNX Runtime refuses it: {error}") from error


def _providers(setup: Setup) -> Iterable[str | tuple[str, dict[str, Any]]]:
    there = ort.get_available_providers()
    for device in setup.devices:
        name = PROVIDERS[device]
        if name not in there:
            continue
        cap = setup.gpu_memory_bytes_max
        if device == "cuda" and cap is not None:
            # The arena grows by what is asked for, so that the cap is not overrun by its doubling.
            yield name, {"gpu_mem_limit": cap, "arena_extend_strategy": "kSameAsRequested"}
        elif device == "tensorrt" and cap is not None:
            yield name, {"trt_max_workspace_size": cap}
        else:
            yield name
    if "cpu" not in setup.devices:  # nodes that the device cannot take run there
        yield PROVIDERS["cpu"]


def tensors(found: Iterable[Any]) -> list[Tensor]:
    """A session's inputs or outputs; -1 is a free dimension. Raises ModelError."""
    return [Tensor(one.name, _dtype(one), _shape(one)) for one in found]


def _dtype(one: Any) -> str:
    dtype = ORT_TYPES.get(one.type)
    if dtype is None:
        raise ModelError(
            f"tensor {one.name} is a {one.type}, which cannot be sent",
            f"known: {', '.join(ORT_TYPES)}",
        )
    return dtype


def _shape(one: Any) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in one.shape]
