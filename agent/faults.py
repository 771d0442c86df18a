"""What goes wrong with an accelerator: told from what its software says, with the remedy of each.

A table, and nothing that acts. Where the words are from: CUDA's are those of cudaGetErrorString
(CUDA Runtime API, "Error Handling"), which ONNX Runtime puts behind `CUDA failure NUMBER: ` and
TensorRT into `Cuda Runtime (...)`. cuBLAS and cuDNN come by the names of their status. NVML's are
those of nvmlErrorString, of `nvidia-smi` and of its binding for Python. Xids and what is to be done
about each: NVIDIA, "Analyzing Xid Errors with the Xid Catalog", column Immediate Action, where
RESTART_APP is `instance` here, and RESET_GPU and RESTART_BM are `reboot`. Whole messages as they
were met, each with its source: tests/test_faults.py.
"""

import re
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

TEXT_CHARS_MAX = 10_000  # of a message are looked through; those of ONNX Runtime have some hundred
Class = Literal[
    "ep_missing",  # the execution provider that was asked for cannot be had
    "out_of_memory",  # the device's; the arena of the CPU has the same words
    "sticky",  # the CUDA context is spoilt: each later call of the process fails too
    "hang",  # it does not come to an end
    "thermal",  # it is slowed, for it is too hot
    "off_the_bus",  # the machine or its driver has lost the device
    "driver_mismatch",  # driver, its library and CUDA do not fit each other
]
Classify = Callable[[str], Class | None]
Remedy = Literal[
    "smaller",  # it works with less at once, or with fewer models; meanwhile this one on the CPU
    "cpu",  # this model on the CPU
    "instance",  # in another process it may work again
    "domain_on_cpu",  # the whole domain on the CPU
    "cool",  # wait until it is cool
    "reboot",
    "person",  # nothing but a person helps
]
REMEDIES: dict[Class, Remedy] = {
    "ep_missing": "cpu",
    "out_of_memory": "smaller",
    "sticky": "instance",
    "hang": "domain_on_cpu",
    "thermal": "cool",
    "off_the_bus": "reboot",
    "driver_mismatch": "person",
}


class Fault(Struct, frozen=True):
    """One of the classes, and what helps."""

    kind: Class
    remedy: Remedy


def fault(kind: Class, remedy: Remedy | None = None) -> Fault:
    """A fault of this class, with its own remedy unless another one is named."""
    return Fault(kind, remedy or REMEDIES[kind])


# What ONNX Runtime says of the model or of the call, whatever else the text quotes: its codes for
# INVALID_ARGUMENT, NO_SUCHFILE, NO_MODEL, INVALID_PROTOBUF, MODEL_LOADED, NOT_IMPLEMENTED and
# INVALID_GRAPH (OrtErrorCode in onnxruntime_c_api.h).
_OF_THE_MODEL = re.compile(r"\[ONNXRuntimeError\] : (?:2|3|4|7|8|9|10) :")
_FAILURE = re.compile(r"\b(?:CUDA|CUBLAS|CUDNN) failure \d+")
_NO_DEVICE = "none of its devices can run it"  # inference/engines/session.py
_XID = re.compile(r"NVRM: Xid \(PCI:[0-9a-f:.]+\): (\d+)", re.IGNORECASE)

# The first that is found decides. `TensorRT EP execution context enqueue failed` is not here: a
# wrong shape has these words too, and after a spoilt context the next copy names CUDA's error.
_TEXTS = [
    (re.compile(text, re.IGNORECASE), found)
    for text, found in (
        # the bus
        (r"fallen off the bus", fault("off_the_bus")),
        (r"\bGPU is lost\b", fault("off_the_bus")),
        (r"\bGPU lost from the bus\b", fault("off_the_bus")),
        (r"\bGPU requires (?:restart|reset)\b", fault("off_the_bus")),
        (r"uvm encountered global fatal error", fault("off_the_bus")),
        # driver and libraries
        (r"driver/library version mismatch", fault("driver_mismatch", "reboot")),
        (r"NVML/RM version mismatch", fault("driver_mismatch", "reboot")),
        (r"unsupported display driver / cuda driver", fault("driver_mismatch", "reboot")),
        (r"CUDA driver version is insufficient", fault("driver_mismatch")),
        (r"forward compatibility was attempted on non.supported HW", fault("driver_mismatch")),
        # memory
        (r"Failed to allocate memory for requested buffer of size", fault("out_of_memory")),
        (r"Available memory of \d+ is smaller than requested bytes", fault("out_of_memory")),
        (r"\bcuda\b.{0,40}\bout of memory\b", fault("out_of_memory")),
        (r"\b(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED\b", fault("out_of_memory")),
        (r"\bCUDNN_STATUS_\w+_ALLOCATION_FAILED\b", fault("out_of_memory")),
        # hangs
        (r"the launch timed out and was terminated", fault("hang")),
        (r"\bNVML: Timeout\b", fault("hang")),
        # a spoilt context
        (r"an illegal memory access was encountered", fault("sticky")),
        (r"unspecified launch failure", fault("sticky")),
        (r"device-side assert triggered", fault("sticky")),
        (r"hardware stack error", fault("sticky")),
        (r"an illegal instruction was encountered", fault("sticky")),
        (r"\bcuda\b.{0,40}\bmisaligned address\b", fault("sticky")),
        (r"operation not supported on global/shared address space", fault("sticky")),
        (r"\bcuda\b.{0,40}\binvalid program counter\b", fault("sticky")),
        (r"uncorrectable ECC error encountered", fault("sticky")),
        (r"\bcuda\b.{0,40}\bunknown error\b", fault("sticky")),
        (r"\bCUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)\b", fault("sticky")),
        (r"\bCUDNN_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)\b", fault("sticky")),
        # no execution provider
        (r"no CUDA-capable device is detected", fault("ep_missing")),
        (r"all CUDA-capable devices are busy or unavailable", fault("ep_missing")),
        (r"\bcuda\b.{0,40}\binvalid device ordinal\b", fault("ep_missing")),
        (r"\bcuda\b.{0,40}\binitialization error\b", fault("ep_missing")),
        (r"no kernel image is available for execution on the device", fault("ep_missing")),
        (r"\b(?:CUBLAS|CUDNN)_STATUS_(?:NOT_INITIALIZED|ARCH_MISMATCH)\b", fault("ep_missing")),
        (r"Failed to create (?:CUDA|Tensorrt)ExecutionProvider", fault("ep_missing")),
        (r"Failed to load library libonnxruntime_providers_", fault("ep_missing")),
        (r"\blib(?:cu|nv)[\w-]*\.so[.\d]*: cannot open shared object", fault("ep_missing")),
        (r"'(?:CUDA|Tensorrt)ExecutionProvider' is not in available", fault("ep_missing")),
        (r"fallback to CPU EP has been explicitly disabled", fault("ep_missing")),
        (r"TensorRT EP failed to create engine from network", fault("ep_missing")),
        (r"TensorRT EP could not deserialize engine", fault("ep_missing")),
        (r"\[ONNXRuntimeError\] : 11 : EP_FAIL", fault("ep_missing")),
        (r"\bNVML(?::| Shared Library).{0,20}\b(?:Not Found|Not Loaded)", fault("ep_missing")),
    )
]

# 45 is what is seen when a process was killed, 63 and 92 are counted and need nothing.
_XIDS: dict[int, Fault] = {
    8: fault("hang", "instance"),
    13: fault("sticky"),
    31: fault("sticky"),
    32: fault("sticky"),
    43: fault("sticky"),
    46: fault("hang", "reboot"),
    48: fault("sticky", "reboot"),
    62: fault("hang", "reboot"),
    64: fault("sticky", "reboot"),
    69: fault("sticky"),
    79: fault("off_the_bus"),
    94: fault("sticky"),
    95: fault("sticky", "reboot"),
    109: fault("hang", "reboot"),
    119: fault("hang", "reboot"),
    120: fault("hang", "reboot"),
    140: fault("sticky", "reboot"),
    143: fault("off_the_bus"),
    158: fault("hang", "reboot"),
}


def fault_in(text: str) -> Fault | None:
    """What a message of an exception or of a log tells of; None: nothing of an accelerator.

    ONNX Runtime writes the type of what it raises into its text, so that the text is enough.
    """
    text = text[:TEXT_CHARS_MAX]
    if xid := _XID.search(text):
        return fault_of_xid(int(xid[1]))
    if _OF_THE_MODEL.search(text):
        return None
    return next((found for pattern, found in _TEXTS if pattern.search(text)), None)


def class_of(text: str) -> Class | None:
    """The class of what failed a call or a load on an accelerator; None: it was none of its.

    Another failure of CUDA, cuBLAS or cuDNN than is known here counts as sticky: what a process can
    still do after it nobody knows.
    """
    if found := fault_in(text):
        return found.kind
    if _FAILURE.search(text):
        return "sticky"
    return "ep_missing" if _NO_DEVICE in text else None


def fault_of_xid(xid: int) -> Fault | None:
    """What an Xid of NVIDIA's driver tells of; None: nothing that needs a remedy, or unknown."""
    return _XIDS.get(xid)
