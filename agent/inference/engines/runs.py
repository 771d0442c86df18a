"""A run of an ONNX Runtime session, whatever its tensors are.

numpy has an array for all of them but BF16: a model that has such an input or output is called with
ONNX Runtime's own values, which take the bits from where numpy has them.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.engines.tensors import BF16
from agent.inference.wire import Tensor

Array = NDArray[Any]
Run = Callable[[Sequence[str], Mapping[str, Array], Any], list[Array]]
ONNX_BFLOAT16 = 16  # of TensorProto.DataType
ORT_BFLOAT16 = "tensor(bfloat16)"


def runner(session: ort.InferenceSession, ends: Sequence[Tensor]) -> Run:
    """What runs it: the outputs asked for, the inputs, ONNX Runtime's options.

    Raises ModelError for a model that cannot be called from Python.
    """
    dtypes = {one.dtype for one in ends}
    if dtypes >= {"BF16", "BYTES"}:
        raise ModelError(
            "its inputs and outputs are of BF16 and of BYTES: ONNX Runtime takes one or the other",
            "export it with FP32 in the place of BF16",
        )
    if "BF16" in dtypes:
        return partial(_by_values, session)
    run: Run = session.run
    return run


def _by_values(
    session: ort.InferenceSession, names: Sequence[str], inputs: Mapping[str, Array], options: Any
) -> list[Array]:
    bound = session.io_binding()
    for name, found in inputs.items():
        if found.dtype == BF16:
            bound.bind_ortvalue_input(name, _value(found))
        else:
            bound.bind_cpu_input(name, found)
    for name in names:
        bound.bind_output(name, "cpu")  # whatever device makes it: its bits are read below
    session.run_with_iobinding(bound, options)
    return [_array(one) for one in bound.get_outputs()]


def _value(found: Array) -> ort.OrtValue:
    bits = np.ascontiguousarray(found).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_BFLOAT16)


def _array(value: ort.OrtValue) -> Array:
    if value.data_type() != ORT_BFLOAT16:
        found: Array = value.numpy()
        return found
    shape = value.shape()
    size = value.tensor_size_in_bytes()
    if not size:
        return np.zeros(shape, BF16)
    content = (ctypes.c_char * size).from_address(value.data_ptr())
    return np.frombuffer(bytes(content), BF16).reshape(shape)
