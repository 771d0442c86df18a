"""Parts that stand still for real, in a real agent, and what brings them back."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import HoldfastError
from tests.cli.inbox import heard, inbox
from tests.outside import ROOT, Checked, Device, running, until

LONG_S = 90.0  # for what takes up to 30 s by its nature, on a busy machine


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path, {})
    with running(made):
        until(lambda: made.status()["domains"]["audio"]["ready"], "the domain is ready")
        until(lambda: seen(made)["fed"], "the watchdog ticks")
        yield made


def seen(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = Checked(device.socket).get("/api/v1/watchdog")
    return found


def hang(device: Device, part: str) -> None:
    Checked(device.socket).post("/api/v1/watchdog/test", {"part": part})


def history(device: Device) -> list[tuple[str, str]]:
    events = Checked(device.socket).get("/api/v1/watchdog/history")["events"]
    return [(one["event"]["part"], one["event"]["remedy"]) for one in events]


def test_a_loop_that_hangs_ends_the_agent_and_its_stacks_are_kept(device: Device) -> None:
    hang(device, "loop")
    until(device.dead, "it ends itself", LONG_S)
    assert "_hang_here" in (device.store.parent / "hung.txt").read_text()
    device.start()
    assert history(device)[:2] == [("agent", "end"), ("loop", "test")]
    assert "_hang_here" in (device.store.parent / "hung.last.txt").read_text()


def test_a_store_that_hangs_ends_the_agent(device: Device) -> None:
    hang(device, "store")
    until(device.dead, "it ends", LONG_S)
    device.start()
    told = history(device)
    assert told[:3] == [("agent", "end"), ("store", "agent"), ("store", "test")], "it had to"


def test_a_domain_that_hangs_is_back_and_nothing_else_notices(device: Device) -> None:
    pid = device.status()["domains"]["audio"]["pid"]
    hang(device, "domain audio")
    until(lambda: device.status()["domains"]["audio"]["pid"] not in (pid, None), "another", LONG_S)
    until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
    assert not device.dead()


def test_a_source_that_has_heard_all_owes_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path, inbox(tmp_path))
    shutil.copy(ROOT / "samples" / "fan.flac", tmp_path / "inbox")
    with running(device):
        until(lambda: heard(device), "it is heard")

        def idle() -> bool:
            parts = {one["part"]: one for one in seen(device)["parts"]}
            source = parts.get("source inbox", {"done": 0, "why": ""})
            return source["done"] > 0 and source["why"] == "nothing waits to be heard"

        until(idle, "it says so")


def test_what_is_no_part_is_refused(device: Device) -> None:
    with pytest.raises(HoldfastError, match="no part") as error:
        hang(device, "nothing")
    assert "domain audio" in error.value.hint
    assert json.dumps(seen(device))


def test_an_agent_that_was_stopped_and_goes_on_is_not_restarted(device: Device) -> None:
    os.kill(device.pid, signal.SIGSTOP)
    os.kill(device.pid, signal.SIGCONT)
    until(lambda: seen(device)["fed"], "it goes on")
