"""Read by Python at its start when its folder is on PYTHONPATH: workers that poison a real GPU.

While the file that POISON_GPU names is there, a run on CUDA first launches a kernel that writes to
the address 0, in the context that ONNX Runtime uses: what CUDA and ONNX Runtime say of it is real.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

KERNEL = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry bad()
{
    .reg .b64 %rd1;
    .reg .b32 %r1;
    mov.u64 %rd1, 0;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
\0"""


def poison() -> None:
    """Launch it, and do not look at what becomes of it."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, module, function = (ctypes.c_void_p() for _ in range(3))
    for status in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
        cuda.cuModuleLoadData(ctypes.byref(module), KERNEL),
        cuda.cuModuleGetFunction(ctypes.byref(function), module, b"bad"),
        cuda.cuLaunchKernel(function, *[1] * 6, 0, None, None, None),
    ):
        if status:
            raise RuntimeError(f"the GPU cannot be poisoned: CUDA says {status}")


if "agent.inference.zygote" in sys.orig_argv:
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        """One whose context may be poisoned."""

        def run(self, *words: Any, **more: Any) -> Any:
            on_gpu = self.get_providers()[0] == "CUDAExecutionProvider"
            if on_gpu and Path(os.environ["POISON_GPU"]).exists():
                poison()
            return super().run(*words, **more)

    onnxruntime.InferenceSession = Session
