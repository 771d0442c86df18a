"""Read by Python at its start when its folder is on PYTHONPATH: workers on a GPU that is not there.

ONNX Runtime as it is with a GPU, as far as can be played: sessions that ask for CUDA run on the
CPU, and name CUDA. What goes wrong with it stands in the file that PLAYED_GPU names, a JSON object
that a test rewrites while workers run; the texts and the exceptions are those of ONNX Runtime.

    absent       creating a session on it raises CUDA failure 100 (`driver`: 35)
    silent       it is left out without a word
    sticky       each run raises CUDA failure 700; a process that met it once always does
    oom          a list of models (by the folder of the file): their runs cannot have the memory
    pids         the processes that this is so in; without it: in all
    hang         a run never ends
    fragile      what errs on the CPU is a sticky error on it: its kernels check no bounds
    cpu_broken   a process that loads a model on the CPU dies
    wrong        runs give zeros, whatever they should
    die          the process dies of a signal, as when the driver takes it along
    after        the first so many runs of a process go well, whatever is wrong
    slow_s       what a run on it takes
    cpu_slow_s   what a run on the CPU takes
    tells        a file that is there once a run has begun
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; "
    "SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> = void] "
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; "
    "SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> = void] "
)
PLACE = "; GPU=0 ; hostname=edge ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
STICKY = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    f"Name:'product' Status Message: {CALL}CUDA failure 700: an illegal memory access was "
    f"encountered {PLACE}cuda_stream_handle.cc ; line=102 ; expr=cudaStreamSynchronize(stream);"
)
OOM = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running "
    "MatMul node. Name:'product' Status Message: /onnxruntime_src/onnxruntime/core/framework/"
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::"
    "Stream*, bool, onnxruntime::WaitNotificationFn) Failed to allocate memory for requested "
    "buffer of size 4718592000"
)
ABSENT = f"{CALL}CUDA failure 100: no CUDA-capable device is detected {PLACE}cuda_execution_"
DRIVER = (
    f"{CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version {PLACE}"
)

if "agent.inference.zygote" in sys.orig_argv:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

    STATE = Path(os.environ["PLAYED_GPU"])
    CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
    Real = onnxruntime.InferenceSession
    poisoned: list[int] = []  # the process that met a sticky error
    onnxruntime.get_available_providers = lambda: [CUDA, CPU]

    def state() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(STATE.read_text() or "{}")
        return found

    class Session(Real):
        """On the CPU, whatever it says."""

        def __init__(self, path: str, *words: Any, providers: Any, **more: Any) -> None:
            asked, wrong = [name for name, *_ in providers if isinstance(name, str)], state()
            self._model = Path(path).parent.parent.name
            self._on_gpu = asked[:1] == [CUDA] and not wrong.get("silent")
            self._runs = 0
            if self._on_gpu and wrong.get("absent"):
                raise RuntimeError(DRIVER if wrong.get("driver") else ABSENT)
            if not self._on_gpu and wrong.get("cpu_broken"):
                os.kill(os.getpid(), signal.SIGSEGV)
            super().__init__(path, *words, providers=[CPU], **more)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if self._on_gpu else [CPU]

        def run(self, *words: Any, **more: Any) -> Any:
            wrong = state()
            if "tells" in wrong:
                Path(wrong["tells"]).touch()
            time.sleep(wrong.get("slow_s" if self._on_gpu else "cpu_slow_s", 0.0))
            if self._on_gpu:
                self._runs += 1
                self._fail(wrong)
            try:
                found = super().run(*words, **more)
            except InvalidArgument as error:
                if self._on_gpu and wrong.get("fragile"):
                    poisoned.append(os.getpid())
                    raise Fail(STICKY) from error
                raise
            return [0 * one for one in found] if wrong.get("wrong") and self._on_gpu else found

        def _fail(self, wrong: dict[str, Any]) -> None:
            if os.getpid() in poisoned:
                raise Fail(STICKY)
            if self._runs <= wrong.get("after", 0):
                return
            if wrong.get("sticky"):
                poisoned.append(os.getpid())
                raise Fail(STICKY)
            here = os.getpid() in wrong.get("pids", [os.getpid()])
            if here and self._model in wrong.get("oom", ()):
                raise RuntimeException(OOM)
            if wrong.get("die"):
                os.kill(os.getpid(), signal.SIGSEGV)
            while wrong.get("hang"):
                time.sleep(1)

    onnxruntime.InferenceSession = Session
