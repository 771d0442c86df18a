"""A child's part of a GPU under MPS, by a folder of pipes as its daemon makes it."""

import os
import socket
from pathlib import Path

import pytest

from agent.host.mps import runs, variables


@pytest.fixture
def daemon(tmp_path: Path) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(tmp_path / "control"))
    return {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}


def test_shares_become_what_the_driver_reads(daemon: dict[str, str]) -> None:
    assert variables(daemon, 0.7, 6 << 30) == {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "70",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=6144M",
    }
    assert variables(daemon, 0.3, None, 1) == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"}
    assert variables(daemon, None, (1 << 30) + 5, 1) == {
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "1=1024M"
    }
    assert variables(daemon, None, None) == {}


def test_a_named_pipe_will_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "control")
    assert runs({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})


def test_the_least_is_not_nothing(daemon: dict[str, str]) -> None:
    assert variables(daemon, 0.001, 5) == {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "1",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1M",
    }


def test_without_the_daemon_nothing_is_set(tmp_path: Path) -> None:
    gone = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    (tmp_path / "control").write_text("")  # not a pipe
    assert not runs(gone)
    assert variables(gone, 0.7, 1 << 30) == {}
