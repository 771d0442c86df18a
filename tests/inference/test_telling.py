"""What ONNX Runtime said on machines whose GPU failed, and what that was."""

import pytest

from agent.faults import class_of
from agent.inference.engines.telling import telling
from agent.inference.worker import MESSAGE_BYTES_MAX
from tests.inference.domains.gpu import sitecustomize as said

NODE = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gemm node. "
ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 1024"
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (said.STICKY, "sticky"),
        (said.OOM, "out_of_memory"),
        (said.ABSENT, "ep_missing"),
        (said.DRIVER, "driver_mismatch"),
        (ARENA, "out_of_memory"),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=h", "out_of_memory"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=egg", "out_of_memory"),
        (f"{NODE}Status Message: CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", "sticky"),
        ("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=1", "sticky"),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", "sticky"),
        ("CUDA failure 999: unknown error ; GPU=192915439 ; expr=cudaSetDevice", "sticky"),
        ("CUDA failure 702: the launch timed out and was terminated", "hang"),
        (
            "CUDA failure 803: system has unsupported display driver / cuda driver",
            "driver_mismatch",
        ),
        ("m.onnx: none of its devices can run it: cuda: libcudnn.so.9: cannot open", "ep_missing"),
        (f"{NODE}Name:'g' Status Message: indices element out of data bounds", None),
        ("its process ended with signal SIGSEGV", None),
    ],
)
def test_a_text_tells_its_fault(text: str, fault: str | None) -> None:
    assert class_of(text) == fault


def test_what_tells_the_fault_survives_the_cut_on_its_way() -> None:
    """Before it stand the signatures of templates, which alone fill what a worker may say."""
    assert said.STICKY.index("CUDA failure 700") > MESSAGE_BYTES_MAX / 2
    long = f"{NODE}Name:'{'n' * MESSAGE_BYTES_MAX}' Status Message: {said.STICKY}"
    assert class_of(long[:MESSAGE_BYTES_MAX]) is None
    assert class_of(telling(long)[:MESSAGE_BYTES_MAX]) == "sticky"
    assert telling("an illegal index") == "an illegal index"
