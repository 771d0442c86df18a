"""What tells the fault of an accelerator, in front of a worker's message, which is cut.

Before it may stand a page of C++ signatures.

The texts are those of ONNX Runtime's CudaCall and BFCArena, and of session.py:

    CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=… ; …
    CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; …
    …bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(…) Failed to allocate memory
    for requested buffer of size 2830172160

Of which class each is, agent/faults.py says, in the agent's own process.
"""

import re

_TELLS = re.compile(
    r"\b(?:CUDA|CUBLAS|CUDNN) failure \d+"
    r"|Failed to allocate memory for requested buffer of size"
    r"|Available memory of"
    r"|GPU has fallen off the bus"
    r"|none of its devices can run it"
)


def telling(text: str) -> str:
    """A message with what tells the fault in front; another message as it is."""
    found = _TELLS.search(text)
    if not found or not found.start():
        return text
    return f"{text[found.start() :].strip()} (from: {text[: found.start()].strip()})"
