"""sd_notify as systemd hears it: a datagram socket that NOTIFY_SOCKET names."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.systemd import TEXT_CHARS_MAX, Systemd, state_folder

Listening = tuple[str, socket.socket]


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    name = f"@holdfast-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        heard.settimeout(5.0)
        yield name, heard


def test_what_is_said_is_heard(listening: Listening) -> None:
    name, heard = listening
    systemd = Systemd({"NOTIFY_SOCKET": name})
    assert systemd.there
    systemd.ready()
    systemd.feed()
    systemd.status("degraded: 1 condition\nmodel_down: domain audio")
    systemd.status("degraded: 1 condition\nmodel_down: domain audio")
    systemd.status("x" * 2000)
    systemd.stopping()
    assert [heard.recv(4096).decode() for _ in range(5)] == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=degraded: 1 condition model_down: domain audio",
        "STATUS=" + "x" * TEXT_CHARS_MAX,
        "STOPPING=1",
    ]


def test_without_systemd_nobody_is_told() -> None:
    systemd = Systemd({})
    assert not systemd.there
    assert systemd.watchdog_s is None
    systemd.ready()
    systemd.feed()


def test_a_line_that_is_cut_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    systemd.feed()
    systemd.feed()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_whether_systemd_watches(environment: dict[str, str], seconds: float | None) -> None:
    assert Systemd(environment).watchdog_s == seconds


def test_the_first_state_folder_of_the_unit_counts() -> None:
    assert state_folder({}) is None
    assert state_folder({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
