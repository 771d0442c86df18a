"""Parts that stand still for real, in a real agent, and what brings them back."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.health.watchdog.budgets import Kept
from agent.health.watchdog.policy import Taken
from tests.cli.inbox import heard, inbox
from tests.e2e.judge import Judge
from tests.host.root.played import Played
from tests.outside import ROOT, Checked, Device, Mosquitto, hang, holdfast, running, until

LONG_S = 240.0  # for what takes up to 30 s by its nature, and longer without a processor


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


def history(device: Device) -> list[tuple[str, str]]:
    events = Checked(device.socket).get("/api/v1/watchdog/history")["events"]
    told = [(one["event"]["part"], one["event"]["remedy"]) for one in events]
    return [one for one in told if one != ("agent", "start")]


def test_a_loop_that_hangs_ends_the_agent_and_its_stacks_are_kept(device: Device) -> None:
    hang(device.socket, "loop")
    until(device.dead, "it ends itself", LONG_S)
    assert "_hang_here" in (device.store.parent / "hung.txt").read_text()
    device.start()
    assert history(device)[:2] == [("agent", "end"), ("loop", "test")]
    assert "_hang_here" in (device.store.parent / "hung.last.txt").read_text()


def test_a_store_that_hangs_ends_the_agent(device: Device) -> None:
    hang(device.socket, "store")
    until(device.dead, "it ends", LONG_S)
    device.start()
    told = history(device)
    assert told[:3] == [("agent", "end"), ("store", "agent"), ("store", "test")], "it had to"


def test_one_that_was_restarted_for_it_already_has_the_machine_rebooted(tmp_path: Path) -> None:
    """Two agents before this one ended because of the store: ladder.json says so."""
    if os.geteuid() != 0:
        pytest.skip("the root daemon needs root")
    played = Played(tmp_path)
    device = Device(tmp_path, {"watchdog": {"root_socket": str(played.socket)}})
    device.store.parent.mkdir()
    clock, taken = Clock(), [Taken("agent", 10.0), Taken("agent", 20.0)]
    before = Kept(clock.boot, clock.monotonic(), 30.0, {"store": taken})
    (device.store.parent / "ladder.json").write_bytes(msgspec.json.encode(before))
    with running(played, device):
        until(lambda: seen(device)["fed"], "the watchdog ticks")
        hang(device.socket, "store")
        until(lambda: played.called() == ["reboot"], "the machine is rebooted", LONG_S)
        told = until(lambda: history(device)[2:] and history(device), "it is told", LONG_S)
        assert told == [("store", "reboot"), ("store", "reboot"), ("store", "test")]
        assert not device.dead(), "it waits for the machine to go down"


def test_a_reset_is_shown_and_the_watchdog_disarmed_by_the_command(tmp_path: Path) -> None:
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\necho pulled > pulled\n")
    program.chmod(0o755)
    settings = {"reset_command": [str(program), "off"], "root_socket": str(tmp_path / "none")}
    device = Device(tmp_path, {"watchdog": settings})
    config = ("--config", str(device.config))
    with running(device):
        shown = holdfast("watchdog", "test", "reset", "--dry-run", *config)
        assert shown.returncode == 0, shown.stderr
        assert f"1. command: would run {program}" in shown.stdout
        assert "2. sysrq: no root daemon answers" in shown.stdout
        assert holdfast("watchdog", "test", "reset", *config).returncode == 1, "not for real"
        until(lambda: "root_unready" in conditions(device), "it says that it could not")
        done = holdfast("watchdog", "disarm", "--for", "2h", *config)
        assert "disarmed for 2.0 h yet" in done.stdout
        assert "watchdog_disarmed" in conditions(device)
        assert "disarmed" not in holdfast("watchdog", "arm", *config).stdout
        assert "watchdog_disarmed" not in conditions(device)
    assert not (tmp_path / "pulled").exists()


def conditions(device: Device) -> set[str]:
    return {one["name"] for one in device.status()["conditions"]}


def test_a_domain_that_hangs_is_back_and_nothing_else_notices(device: Device) -> None:
    pid = device.status()["domains"]["audio"]["pid"]
    hang(device.socket, "domain audio")
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


def test_an_uplink_and_a_source_that_hang_begin_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    """Neither the agent nor a domain is ended for them."""
    broker = Mosquitto(tmp_path)
    judge = Judge(tmp_path / "judge.db", broker.port, "device-under-test")
    device = Device(
        tmp_path, {"link": {"broker_url": broker.url, "ack_from": "ingest"}, **inbox(tmp_path)}
    )
    with running(broker, judge, device):
        until(lambda: heard(device) and device.status()["link"]["connected"], "it is at its work")
        agent, domain = device.pid, device.status()["domains"]["audio"]["pid"]
        hang(device.socket, "uplink")
        hang(device.socket, "source inbox")
        until(lambda: not device.status()["link"]["connected"], "the uplink hangs")
        shutil.copy(ROOT / "samples" / "fan.flac", tmp_path / "inbox")
        until(lambda: device.ledger("inbox.raw")["held"], "sound waits")
        until(lambda: device.status()["link"]["connected"], "the uplink is back", LONG_S)
        until(lambda: heard(device), "the source is back", LONG_S)
        until(lambda: device.ledger("inbox.segments")["delivered"], "all is sent")
        until(lambda: not device.ledger("inbox.segments")["held"], "all is sent")
        told = set(history(device))
        tests = {("uplink", "test"), ("source inbox", "test")}
        assert told == tests | {("uplink", "part"), ("source inbox", "part")}
        assert (device.pid, device.status()["domains"]["audio"]["pid"]) == (agent, domain)
        assert not device.dead()
        sent = device.ledger("inbox.segments")
        assert judge.seqs("inbox.segments") == [*range(1, sent["produced"] + 1)]


def test_what_is_no_part_is_refused(device: Device) -> None:
    with pytest.raises(HoldfastError, match="no part") as error:
        hang(device.socket, "nothing")
    assert "domain audio" in error.value.hint
    assert json.dumps(seen(device))


def test_an_agent_that_was_stopped_and_goes_on_is_not_restarted(device: Device) -> None:
    os.kill(device.pid, signal.SIGSTOP)
    os.kill(device.pid, signal.SIGCONT)
    until(lambda: seen(device)["fed"], "it goes on")
