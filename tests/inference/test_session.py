"""On which device a session is, and that it is said where that is not the one asked for."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from agent.errors import ModelError
from agent.inference.engines import devices, session
from agent.inference.engines.session import opened
from agent.inference.wire import Load, Setup
from bench.models import tiny, write

GIB = 1 << 30
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    folder = write(tmp_path / "models", "tiny", tiny())
    return Load("tiny", "onnx", str(folder / "model.onnx"), sha256="abc")


def setup(*wanted: str, cap: int | None = None) -> Setup:
    return Setup([], list(wanted), 1, cap)


class Board:
    """ONNX Runtime on a board with a GPU, as far as can be played: its sessions run on the CPU."""

    def __init__(self, patch: pytest.MonkeyPatch, *, works: str, raises: tuple[str, ...]) -> None:
        """Sessions name the provider that `works`; those that ask first for `raises` fail."""
        self.asked = list[list[devices.Provider]]()
        self._works, self._raises, self._real = works, raises, ort.InferenceSession
        patch.setattr(ort, "get_available_providers", lambda: ALL)
        patch.setattr(session.ort, "InferenceSession", self._open)

    def _open(self, path: str, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        self.asked.append(providers)
        if providers[0][0] in self._raises:
            raise RuntimeError("Please install TensorRT libraries")
        found = self._real(path, options, providers=["CPUExecutionProvider"])
        found.get_providers = lambda: [self._works, "CPUExecutionProvider"]
        return found


def test_the_processor_is_asked_for_and_used(load: Load) -> None:
    found, fallback = opened(load, setup("cpu"))
    assert found.get_providers() == ["CPUExecutionProvider"]
    assert not fallback
    assert found.get_session_options().intra_op_num_threads == 1


QUIET = """
import os, sys
from pathlib import Path
from agent.inference.engines.session import opened
from agent.inference.wire import Load, Setup
found, _ = opened(Load("tiny", "onnx", sys.argv[1]), Setup([], ["cpu"], 1))
print(len(os.listdir("/proc/self/task")), [str(one) for one in Path.home().rglob("*")])
"""


def test_onnx_runtime_reports_to_nobody(load: Load, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    alone = {**kept, "HOME": str(home), "OPENBLAS_NUM_THREADS": "1", "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, "-c", QUIET, load.path]
    said = subprocess.run(command, env=alone, check=True, capture_output=True, text=True).stdout
    assert said == "1 []\n"


def test_threads_are_those_of_the_setup(load: Load) -> None:
    found, _ = opened(load, Setup([], ["cpu"], 2))
    assert found.get_session_options().intra_op_num_threads == 2


def test_a_build_without_the_device_runs_on_the_next_and_says_so(load: Load) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build has CUDA")
    found, fallback = opened(load, setup("tensorrt", "cuda", "cpu"))
    assert found.get_providers() == ["CPUExecutionProvider"]
    for said in ("has no TensorrtExecutionProvider", "has no CUDAExecutionProvider", "extra `gpu`"):
        assert said in fallback
    found.run(None, {"x": np.zeros((1, 64), np.float32)})


def test_what_may_not_run_on_the_processor_does_not(load: Load) -> None:
    with pytest.raises(ModelError, match=r"none of its devices can run it: cuda: .*CUDA") as said:
        opened(load, setup("cuda"))
    assert "add cpu" in said.value.hint


def test_a_device_that_onnx_runtime_leaves_out_without_a_word_is_named(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu does where there is no GPU."""
    Board(monkeypatch, works="CPUExecutionProvider", raises=())
    _, fallback = opened(load, setup("cuda", "cpu"))
    assert fallback.startswith("cuda: ")
    with pytest.raises(ModelError, match="none of its devices can run it: cuda: "):
        opened(load, setup("cuda"))


def test_a_device_that_cannot_be_opened_makes_way_for_the_next(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    board = Board(monkeypatch, works="CUDAExecutionProvider", raises=("TensorrtExecutionProvider",))
    _, fallback = opened(load, setup("tensorrt", "cuda", "cpu"))
    assert fallback.startswith("tensorrt: ")
    assert "cuda" not in fallback.replace("libcuda", "")
    assert [[name for name, _ in asked] for asked in board.asked] == [ALL, ALL[1:]]


def test_a_broken_model_is_refused_as_such_whatever_the_devices(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    Path(load.path).write_bytes(b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime refuses it"):
        opened(load, setup("tensorrt", "cuda", "cpu"))


def test_the_first_device_in_use_needs_no_word(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    Board(monkeypatch, works="CUDAExecutionProvider", raises=())
    assert opened(load, setup("cuda", "cpu")).fallback == ""


def test_memory_of_the_gpu_is_capped(load: Load) -> None:
    (_, cuda), (_, cpu) = devices.providers(["cuda"], load, setup("cuda", cap=GIB))
    assert cuda == {"gpu_mem_limit": str(GIB), "arena_extend_strategy": "kSameAsRequested"}
    assert cpu == {}
    assert devices.providers(["cuda", "cpu"], load, setup("cuda"))[0] == (ALL[1], {})


def test_engines_of_tensorrt_are_kept_by_the_digest_of_their_model(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path}/cache:{tmp_path}/other")
    (name, options), _ = devices.providers(["tensorrt", "cpu"], load, setup("tensorrt", cap=GIB))
    folder = Path(options["trt_engine_cache_path"])
    assert name == "TensorrtExecutionProvider"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_max_workspace_size"] == str(GIB)
    assert folder == tmp_path / "cache/tensorrt/tiny" / f"abc-{ort.__version__}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_of_the_engines_of_former_versions_few_are_kept(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    for i in range(5):
        former = tmp_path / "tensorrt/tiny" / f"old{i}"
        former.mkdir(parents=True)
        (former / "engine").write_bytes(b"x")
        os.utime(former, (i, i))
    devices.providers(["tensorrt"], load, setup("tensorrt"))
    left = {one.name for one in (tmp_path / "tensorrt/tiny").iterdir()}
    assert left == {"old3", "old4", f"abc-{ort.__version__}"}


def test_a_cache_that_cannot_be_written_is_named(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="engines cannot be kept there"):
        devices.providers(["tensorrt"], load, setup("tensorrt"))
