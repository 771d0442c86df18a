"""An ONNX Runtime session, opened as a domain wants it, or refused with the reason."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from agent.errors import ModelError
from agent.inference.engines import devices
from agent.inference.engines.devices import PROVIDERS
from agent.inference.engines.tensors import ORT_TYPES
from agent.inference.wire import Load, Setup, Tensor

REFUSALS = (  # what ONNX Runtime raises about a model; they have no base class of their own
    refusals.EPFail,
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoSuchFile,
    refusals.NotImplemented,
    refusals.RuntimeException,
)


class Opened(NamedTuple):
    """A session, and why it is not on the first device that was asked for; empty: it is."""

    session: ort.InferenceSession
    fallback: str


def opened(load: Load, setup: Setup) -> Opened:
    """A session on the first device that works. Raises ModelError where none does.

    Asked for a device that is not there, ONNX Runtime runs on the CPU without a word, or with a
    word on standard error: what counts is the execution provider that the session names.
    """
    reasons = {device: devices.absent(device) for device in setup.devices}
    there = [device for device, reason in reasons.items() if not reason]
    if not there:
        raise _nowhere(load, reasons)
    while True:
        try:
            session = _session(load, setup, there)
            break
        except (*REFUSALS, RuntimeError) as error:  # of the device's, or the model's own fault
            if len(there) == 1:
                raise ModelError(f"{load.path}: ONNX Runtime refuses it: {error}") from error
            reasons[there[0]] = devices.unused(there[0], str(error))
            del there[0]  # a fault of the model's is told by the last one
    ep = session.get_providers()[0]
    for device in there:
        if PROVIDERS[device] == ep:
            return Opened(session, _told(setup.devices, device, reasons))
        reasons[device] = devices.unused(device)
    raise _nowhere(load, reasons)


def _session(load: Load, setup: Setup, there: list[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread waits on a core that another domain may need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = devices.providers(there, load, setup)
    return ort.InferenceSession(load.path, options, providers=providers, enable_fallback=0)


def _told(wanted: list[str], got: str, reasons: dict[str, str]) -> str:
    """Why it is not on the first device."""
    return "; ".join(reasons[device] for device in wanted[: wanted.index(got)])


def _nowhere(load: Load, reasons: dict[str, str]) -> ModelError:
    return ModelError(
        f"{load.path}: none of its devices can run it: {'; '.join(reasons.values())}",
        "add cpu to the domain's devices, or mend what is named",
    )


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
