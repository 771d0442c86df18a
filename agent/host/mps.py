"""NVIDIA's Multi-Process Service: a child's part of a GPU, where its control daemon runs.

A CUDA program joins it by itself when it finds the daemon's pipe, and runs without it otherwise, so
what is set here does nothing at worst. Both limits can only narrow what the daemon allows.
"""

from collections.abc import Mapping
from pathlib import Path

_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
_USUAL_PIPES = "/tmp/nvidia-mps"
_CONTROL = "control"
_MIB = 1 << 20


def runs(surroundings: Mapping[str, str]) -> bool:
    """Whether the control daemon's pipe is there; `surroundings` are the agent's own variables."""
    pipe = Path(surroundings.get(_PIPES, _USUAL_PIPES)) / _CONTROL
    return pipe.is_fifo() or pipe.is_socket()


def variables(
    surroundings: Mapping[str, str],
    gpu_share: float | None,
    gpu_memory_bytes_max: int | None,
    device: int = 0,
) -> dict[str, str]:
    """What to add to a child's environment for its part of `device`; empty where MPS is not.

    `gpu_share` of 1 is all of the GPU's threads. Memory is counted in whole MiB, rounded down.
    """
    if not runs(surroundings):
        return {}
    found = {}
    if gpu_share is not None:
        found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(max(1, round(gpu_share * 100)))
    if gpu_memory_bytes_max is not None:
        most = max(1, gpu_memory_bytes_max // _MIB)
        found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"{device}={most}M"
    return found
