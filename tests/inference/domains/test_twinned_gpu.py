"""The way to the CPU and back on a real NVIDIA GPU: its own errors, in the words of its own stack.

With one: pip install '.[gpu]' in the place of the extra `cpu`, then pytest on this file.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import get_available_providers

from tests.inference.domains.rig import put, running, until
from tests.inference.domains.test_twinned import CPU, CUDA, Load, twinned

POISONED = Path(__file__).parent / "gpu_real"
GPU_MEMORY_BYTES = 64 << 20
ROWS = 6 << 20  # of four float32: 96 MiB go in


def missing() -> str:
    """Why there is no GPU to try this on; empty: there is one."""
    if CUDA not in get_available_providers():
        return "this ONNX Runtime has no CUDA: it needs the extra `gpu`"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver: {error}"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a GPU")


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While it is there, each run on the GPU meets an illegal access."""
    monkeypatch.setenv("PYTHONPATH", str(POISONED))
    monkeypatch.setenv("POISON_GPU", str(tmp_path / "poison"))
    return tmp_path / "poison"


async def test_a_context_that_is_really_poisoned(tmp_path: Path, poison: Path) -> None:
    put(tmp_path / "models", 1)
    settings = twinned(cpu_twin="preloaded", probe_s_min=0.5, probe_s_max=2.0)
    async with running(tmp_path / "models", d=settings) as rig:
        d = rig.domains.named("d")
        await until(lambda: d.twin and d.twin.ready.is_set(), "a twin stands by")
        load = Load(rig)
        await load.more(CUDA, count=1000)
        poison.touch()
        await load.more(CPU, count=1000)
        assert d.falls["m"].fault == "sticky"
        print(d.falls["m"].cause)
        await until(lambda: d.ladder.probes["failed"] > 0, "it is probed, and fails")
        poison.unlink()
        await load.more(CUDA, count=1000)
        await load.end()


async def test_memory_that_is_really_not_there(tmp_path: Path, poison: Path) -> None:
    for name in ("large", "small"):
        put(tmp_path / "models", 1, name)
    settings = twinned("large", "small", gpu_memory_bytes_max=GPU_MEMORY_BYTES)
    async with running(tmp_path / "models", d=settings) as rig:
        d = rig.domains.named("d")
        load = Load(rig, "small")
        await load.more(CUDA, "small")
        answer = await rig.ask("large", np.ones((ROWS, 4), np.float32), rows=ROWS)
        assert answer.ep == CPU
        assert d.falls["large"].fault == "out_of_memory"
        print(d.falls["large"].cause)
        await load.more(CUDA, "small")
        await load.end()
        assert d.eps["small"] == CUDA
