"""What ONNX Runtime says when it is the accelerator that failed, by the class of the fault.

The numbers are CUDA's (cudaError_t in driver_types.h, cublasStatus_t, cudnnStatus_t); the texts are
those of ONNX Runtime's CudaCall and BFCArena, up to 1.23:

    CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=… ; …
    CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; …
    CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; …
    …bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(…) Failed to allocate memory
    for requested buffer of size 2830172160
"""

import re
from collections.abc import Callable
from typing import Literal

Fault = Literal[
    "ep_missing", "out_of_memory", "sticky", "hang", "off_the_bus", "driver_mismatch", "thermal"
]
Classify = Callable[[str], str | None]
OUT_OF_MEMORY: Fault = "out_of_memory"  # the one that is a single model's, and spares its process
HANG: Fault = "hang"
EP_MISSING: Fault = "ep_missing"

_BY_NUMBER: dict[tuple[str, int], Fault] = {
    **dict.fromkeys((("CUDA", 2), ("CUBLAS", 3), ("CUDNN", 2)), OUT_OF_MEMORY),
    **dict.fromkeys((("CUDA", 35), ("CUDA", 803), ("CUDA", 804)), "driver_mismatch"),
    **dict.fromkeys((("CUDA", 46), ("CUDA", 100), ("CUDA", 101)), "off_the_bus"),
    ("CUDA", 702): HANG,  # the launch timed out
}
_FAILURE = re.compile(r"\b(CUDA|CUBLAS|CUDNN) failure (\d+)")
_PHRASES: tuple[tuple[str, Fault], ...] = (
    ("Failed to allocate memory for requested buffer of size", OUT_OF_MEMORY),
    ("Available memory of", OUT_OF_MEMORY),  # … is smaller than requested bytes of …: gpu_mem_limit
    ("GPU has fallen off the bus", "off_the_bus"),
    ("none of its devices can run it", EP_MISSING),  # session.py
    ("an illegal memory access was encountered", "sticky"),
    ("unspecified launch failure", "sticky"),
)


def classify(text: str) -> str | None:
    """The class of the accelerator's fault that a text tells of; None: it tells of none.

    A failure of CUDA, cuBLAS or cuDNN that is not known here counts as sticky: what a process can
    still do after it nobody knows.
    """
    if found := _FAILURE.search(text):
        return _BY_NUMBER.get((found[1], int(found[2])), "sticky")
    return next((fault for phrase, fault in _PHRASES if phrase in text), None)


def telling(text: str) -> str:
    """A text with what tells the fault in front: before it may stand a page of C++ signatures."""
    found = _FAILURE.search(text)
    at = found.start() if found else max(text.find(phrase) for phrase, _ in _PHRASES)
    return text if at < 1 else f"{text[at:].strip()} (from: {text[:at].strip()})"
