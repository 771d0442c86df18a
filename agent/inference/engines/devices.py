"""Devices as ONNX Runtime knows them: which are there, how they are set up, why one is not used.

Nothing here proves that a device works: a build with CUDA lists it, and calls the GPU its device,
where there is no GPU at all. Only an open session knows (session.py).

Limits  : CACHES_MAX folders of TensorRT engines for each model, the ones used last.
Format  : below $CACHE_DIRECTORY (systemd's), else $XDG_CACHE_HOME or ~/.cache: tensorrt/MODEL/, and
          there a folder for each digest of the model and version of ONNX Runtime, for an engine
          of one is nothing to another. What is in it is TensorRT's own.
Recovery: whatever is missing is built again, which takes minutes.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from agent.errors import ModelError
from agent.inference.wire import Load, Setup

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
CACHES_MAX = 3

Provider = tuple[str, dict[str, Any]]


def providers(devices: list[str], load: Load, setup: Setup) -> list[Provider]:
    """What to ask ONNX Runtime for; the CPU last, for what the others cannot take."""
    found = [(PROVIDERS[device], _options(device, load, setup)) for device in devices]
    return found if "cpu" in devices else [*found, (PROVIDERS["cpu"], {})]


def absent(device: str) -> str:
    """Why a device cannot be asked for, with the remedy; empty when it can."""
    if PROVIDERS[device] in ort.get_available_providers():
        return ""
    return f"{device}: {_build()} has no {PROVIDERS[device]} (the extra `gpu` has)"


def unused(device: str, said: str = "") -> str:
    """Why a device is not used that was asked for: its libraries, and what was `said`."""
    library = Path(ort.__file__).parent / f"capi/libonnxruntime_providers_{device}.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{device}: {error}" + (f" ({said})" if said else "")
    return f"{device}: {said or 'ONNX Runtime cannot use it, and says why in the log'}"


def _options(device: str, load: Load, setup: Setup) -> dict[str, Any]:
    cap = setup.gpu_memory_bytes_max
    if device == "cuda" and cap is not None:
        # The arena grows by what is asked for, so that the cap is not overrun by its doubling.
        return {"gpu_mem_limit": str(cap), "arena_extend_strategy": "kSameAsRequested"}
    if device == "tensorrt":  # its switches are True and False; 1 is refused
        cache = str(_cache(load))
        return {
            **({} if cap is None else {"trt_max_workspace_size": str(cap)}),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": cache,
        }
    return {}


def _cache(load: Load) -> Path:
    """Where the engines of this model are kept. Raises ModelError."""
    import shutil  # with all that it knows of archives, for those alone who need it

    systemd, _, _ = os.environ.get("CACHE_DIRECTORY", "").partition(":")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast"
    of_model = Path(systemd or usual) / "tensorrt" / load.name
    folder = of_model / f"{load.sha256 or 'unnamed'}-{ort.__version__}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)
        for old in sorted(of_model.iterdir(), key=lambda one: -one.stat().st_mtime)[CACHES_MAX:]:
            shutil.rmtree(old)
    except OSError as error:
        raise ModelError(
            f"{folder}: TensorRT's engines cannot be kept there: {error}",
            "set CacheDirectory= in the unit, or leave tensorrt out of the domain's devices",
        ) from error
    return folder


def _build() -> str:
    """The package of ONNX Runtime that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # seldom needed, and large

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"ONNX Runtime {ort.__version__}"
