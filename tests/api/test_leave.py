"""An agent that is told to end: who has asked it something is answered."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agent.api.routes.audio_stream import STREAM
from tests.inference.domains.rig import put
from tests.outside import DEADLINE_S, ROOT, Checked, Device, running, until

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
BODY = json.dumps({"inputs": [X]}).encode()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    models = tmp_path / "models"
    put(models, 1)
    shutil.copytree(ROOT / "models/speech", models / "speech")
    domains = {"vision": {"models": ["m"]}}
    made = Device(tmp_path, {"models": {"path": str(models)}, "domains": domains})
    with running(made):
        until(lambda: all(one["ready"] for one in made.status()["domains"].values()), "ready")
        yield made


def under_way(device: Device, more: str = "") -> socket.socket:
    """A call that the agent has, and its worker does not answer yet."""
    asking = socket.socket(socket.AF_UNIX)
    asking.settimeout(DEADLINE_S)
    asking.connect(str(device.socket))
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n{more}"
    asking.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    until(
        lambda: Checked(device.socket).get("/api/v1/health")["active_requests"] > 1,
        "the call is under way",
    )
    return asking


def answered(asking: socket.socket) -> tuple[int, str]:
    taken = b""
    while piece := asking.recv(1 << 16):
        taken += piece
    head, _, body = taken.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


# The second has aiohttp serve it; the first goes the short way.
@pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n"], ids=["short", "long"])
def test_a_call_under_way_is_answered_before_the_agent_ends(device: Device, more: str) -> None:
    worker = device.status()["domains"]["vision"]["pid"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with under_way(device, more) as asking:
            os.kill(device.pid, signal.SIGTERM)
            until(lambda: not device.answers(), "nobody is taken in any more")
            os.kill(worker, signal.SIGCONT)
            status, body = answered(asking)
            assert (status, json.loads(body)["outputs"][0]["data"]) == (200, X["data"])
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n"], ids=["short", "long"])
def test_who_cannot_be_answered_in_time_is_told_why(device: Device, more: str) -> None:
    os.kill(device.status()["domains"]["vision"]["pid"], signal.SIGSTOP)
    with under_way(device, more) as asking:
        assert device.stop() == 0
        status, body = answered(asking)
    assert status == 503
    assert "the agent is ending" in json.loads(body)["error"]


def test_who_waits_until_a_recording_is_heard_is_told_where_to_look(device: Device) -> None:
    content = next((ROOT / "samples").rglob("*.flac")).read_bytes()
    os.kill(device.status()["domains"]["audio"]["pid"], signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(DEADLINE_S)
        asking.connect(str(device.socket))
        head = "POST /api/v1/audio?source=gate&wait_s=300 HTTP/1.1\r\nHost: localhost\r\n"
        asking.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: "took in" in device.log.read_text(), "it is kept")
        assert device.stop() == 0
        status, body = answered(asking)
    assert (status, json.loads(body)["status"]) == (202, "hearing")


async def test_streams_are_told_and_it_is_no_fault(device: Device) -> None:
    there = aiohttp.UnixConnector(str(device.socket))
    async with (
        aiohttp.ClientSession("http://localhost", connector=there) as session,
        session.ws_connect(STREAM) as stream,
    ):
        assert json.loads((await stream.receive()).data)["event"] == "ready"
        os.kill(device.pid, signal.SIGTERM)
        told = [json.loads(one.data) async for one in stream]
        assert "the agent is ending" in told[-1]["error"]
        assert stream.close_code == aiohttp.WSCloseCode.GOING_AWAY
    until(device.dead, "it has ended")
    said = [line for line in device.log.read_text().splitlines() if "the live stream" in line]
    assert said
    assert all(line.startswith("<6>") for line in said), "it is information"
