"""Jobs through the whole agent: real doors, a real store, a real model in its process."""

import http.client
import json
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bench import models
from tests.outside import Device, running, until

ROWS = 200
TOTAL_S = 30.0


class Asking(http.client.HTTPConnection):
    """HTTP over the agent's socket."""

    def __init__(self, device: Device) -> None:
        super().__init__("localhost", timeout=TOTAL_S)
        self._device = device

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TOTAL_S)
        self.sock.connect(str(self._device.socket))

    def ask(
        self, method: str, route: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        try:
            self.request(method, route, body, headers or {})
            answer = self.getresponse()
            return answer.status, answer.read(), dict(answer.headers)
        finally:
            self.close()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    models.write(tmp_path / "models", "tiny", models.tiny())
    return Device(
        tmp_path,
        {
            "models": {"path": str(tmp_path / "models")},
            "domains": {"numbers": {"models": ["tiny"], "class": "batch"}},
        },
    )


def ready(device: Device) -> None:
    until(lambda: device.status()["domains"]["numbers"]["ready"], "the domain is ready")


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, 64)).astype(np.float32)


def handed_in(device: Device, name: str, given: np.ndarray) -> dict[str, Any]:
    head = json.dumps(
        {
            "model": "tiny",
            "id": name,
            "inputs": [
                {
                    "name": "x",
                    "shape": list(given.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": given.nbytes},
                }
            ],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, body, _ = Asking(device).ask("POST", "/api/v1/jobs", head + given.tobytes(), headers)
    assert status in (200, 202), body
    return json.loads(body)


def state(device: Device, name: str) -> dict[str, Any]:
    return json.loads(Asking(device).ask("GET", f"/api/v1/jobs/{name}")[1])


def result(device: Device, name: str) -> np.ndarray:
    route = f"/api/v1/jobs/{name}/result"
    accept = {"Accept": "application/octet-stream"}
    status, body, headers = Asking(device).ask("GET", route, headers=accept)
    assert status == 200, body
    size = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:size])["outputs"]
    return np.frombuffer(body[size:], np.float32).reshape(output["shape"])


def expected(device: Device, given: np.ndarray) -> np.ndarray:
    path = device.folder / "models/tiny/1/model.onnx"
    found: np.ndarray = onnxruntime.InferenceSession(str(path)).run(None, {"x": given})[0]
    return found


def test_a_job_gives_what_the_model_gives(device: Device) -> None:
    given = rows(ROWS)
    with running(device):
        ready(device)
        handed_in(device, "one", given)
        until(lambda: state(device, "one")["state"] == "done", "it is done")
        told = state(device, "one")
        assert told["progress"] == 1.0
        assert told["answered"][0]["model"].startswith("tiny/1@")
        np.testing.assert_allclose(result(device, "one"), expected(device, given), atol=1e-4)


def test_a_job_survives_the_agent_and_its_process(device: Device) -> None:
    """The agent is killed as soon as the job is accepted, and its worker once more."""
    given = rows(ROWS)
    with running(device):
        ready(device)
        handed_in(device, "one", given)
        device.kill()
        device.start()
        until(lambda: state(device, "one")["state"] == "done", "it is done")
        np.testing.assert_allclose(result(device, "one"), expected(device, given), atol=1e-4)


def test_a_wrong_job_is_refused_with_what_is_wrong(device: Device) -> None:
    with running(device):
        ready(device)
        body = json.dumps({"model": "tiny", "inputs": []}).encode()
        status, said, _ = Asking(device).ask("POST", "/api/v1/jobs", body)
        assert status == 400, said
        given = struct.pack("<4f", 1, 2, 3, 4)
        told = handed_in(device, "short", np.frombuffer(given, np.float32).reshape(1, 4))
        until(lambda: state(device, told["id"])["state"] == "failed", "it failed")
        assert "shape" in state(device, "short")["failure"]
