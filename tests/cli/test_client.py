"""What the command says of an agent that answers wrongly, late, or not at all."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cli.client import Client
from agent.cli.status import show
from agent.errors import AgentSilent, AgentUnreachable, HoldfastError
from tests.cli.inbox import inbox
from tests.cli.test_cli import CONTRACT
from tests.outside import DEADLINE_S, Device, running, until

BRIEF_S = 0.2  # an agent that is stopped would not answer within an hour either


@contextmanager
def stopped(device: Device) -> Iterator[None]:
    """The whole agent stands still, but its socket is there and lets in."""
    pid = device.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def serving(path: Path, answer: bytes) -> Iterator[Path]:
    """Something that answers one request with these bytes and hangs up."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(DEADLINE_S)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


def reply(status: str, body: bytes) -> bytes:
    """An HTTP answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_hung_agent_is_told_apart_from_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(tmp_path, inbox(tmp_path))
    with running(device):
        until((device.store.parent / "status.json").exists, "there is a snapshot")
        with stopped(device):
            with pytest.raises(AgentSilent, match=r"does not answer within 0\.2 s") as caught:
                Client(device.socket, BRIEF_S).get("/api/v1/status")
            assert "may hang" in str(caught.value)
            assert caught.value.hint == "look at its log; restart it"
            assert show(device.config, as_json=False, timeout_s=BRIEF_S) == 3
            shown = capsys.readouterr().out
            assert show(device.config, as_json=True, timeout_s=BRIEF_S) == 3
        until(device.answers, "it answers again")
        assert device.stop() == 0
    assert shown.startswith("THE AGENT DOES NOT ANSWER. What follows is its last state")
    assert "NO AGENT RUNS" not in shown
    assert "device-under-test" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_hung_agent_that_lets_nobody_in_any_more_is_told_apart_from_none(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(path))
        listening.listen(0)
        first.connect(str(path))
        with pytest.raises(AgentSilent, match="may hang"):
            Client(path, BRIEF_S).get("/api/v1/status")


def test_a_hung_agent_without_a_snapshot_is_said_with_3(tmp_path: Path) -> None:
    device = Device(tmp_path, inbox(tmp_path))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(device.socket))
        listening.listen()
        with pytest.raises(AgentSilent) as caught:
            show(device.config, as_json=False, timeout_s=BRIEF_S)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null", b"\xff\xfe", b'{"status":'])
@pytest.mark.parametrize("status", ["200 OK", "502 Bad Gateway"])
def test_an_answer_that_is_no_document_is_said_with_its_status(
    tmp_path: Path, status: str, body: bytes
) -> None:
    with (
        serving(tmp_path / "s", reply(status, body)) as path,
        pytest.raises(HoldfastError, match=f"answered with status {status[:3]} and no") as caught,
    ):
        Client(path).get("/api/v1/status")
    assert not isinstance(caught.value, AgentUnreachable)
    assert caught.value.hint


def test_an_answer_that_is_no_http_is_said(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "s", b"220 mail.example ESMTP\r\n") as path,
        pytest.raises(HoldfastError, match="no HTTP") as caught,
    ):
        Client(path).get("/api/v1/status")
    assert not isinstance(caught.value, AgentUnreachable)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_an_agent_that_hangs_up_is_told_apart_from_none(tmp_path: Path, answer: bytes) -> None:
    with (
        serving(tmp_path / "s", answer) as path,
        pytest.raises(AgentSilent, match="ended the connection without an answer"),
    ):
        Client(path).get("/api/v1/status")


def test_a_socket_that_nobody_serves_is_no_agent(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "left"):
        if path.name == "left":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        with pytest.raises(AgentUnreachable, match="no agent answers") as caught:
            Client(path).get("/api/v1/status")
        assert not isinstance(caught.value, AgentSilent)


def test_a_document_of_the_agent_is_the_answer(tmp_path: Path) -> None:
    with running(device := Device(tmp_path, {})):
        assert Client(device.socket, DEADLINE_S).get("/api/v1/status").keys() >= CONTRACT
