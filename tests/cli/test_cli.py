"""The technician's command, on real agents."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.cli.inbox import heard, inbox
from tests.cli.unprivileged import holdfast_unprivileged
from tests.outside import (
    DEADLINE_S,
    HOLDFAST,
    ROOT,
    Checked,
    Device,
    as_json,
    holdfast,
    running,
    until,
)

CONTRACT = {"status", "uptime", "conditions", "link", "ledger", "domains", "models", "store"}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, inbox(tmp_path))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An agent without its broker that has heard a recording."""
    folder = tmp_path_factory.mktemp("agent")
    found = Device(folder, inbox(folder))
    sample = ROOT / "samples" / "fan.flac"
    (folder / "inbox" / "fan.flac").write_bytes(sample.read_bytes())
    with running(found):
        until(lambda: found.ledger("inbox.segments")["held"] > 0, "a segment is kept")
        until(lambda: heard(found), "all is heard")
        yield found


def shown(device: Device, *more: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """What `holdfast status` shows on a terminal of so many columns."""
    command = [str(HOLDFAST), "status", "--config", str(device.config), *more]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "COLUMNS": str(columns)},
    )


def test_status_is_one_screen_of_80_columns(agent: Device) -> None:
    lines = shown(agent).stdout.splitlines()
    assert 8 < len(lines) <= 24
    assert max(map(len, lines)) <= 80, "a line is longer than the screen"


def test_status_shows_what_a_technician_asks_first(agent: Device) -> None:
    text, document = shown(agent).stdout, agent.status()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["degraded"].split()[1] == "device-under-test"
    assert re.search(r"down \d+ s, mqtt://127\.0\.0\.1:1, MQTT", lines["link"])
    assert "from the ingest, none yet" in lines["acks"]
    assert "audio: ready, CPUExecutionProvider, restarted 0 times" in lines["domain"]
    assert document["domains"]["audio"]["model"] in lines["model"]
    assert "GiB free" in " ".join(text.split()) or "TiB free" in " ".join(text.split())
    assert document["store"]["epoch"] in " ".join(text.split())
    assert "inbox (folder)" in lines["sources"]
    assert (lines["gpu"].split() == ["gpu", "none"]) is (
        document["accelerators"]["backend"] == "none"
    )
    balance = document["ledger"]["inbox.segments"]
    row = [balance[k] for k in ("produced", "delivered", "held")]
    assert lines["inbox.segments"].split()[1:4] == [str(n) for n in row]
    assert f"{document['ledger']['inbox.raw']['produced']} processed" in lines["inbox.raw"]
    assert "balances" in lines
    assert "link_down (link)" in text
    assert "-> nothing is lost" in text


FLASH = {
    "device": "mmcblk0",
    "life_time": "0x01 0x02",
    "sources": {
        "process": {"bytes": 1, "running_s": 1.0, "bytes_per_day": 3 << 20},
        "device": {"bytes": 1, "running_s": 1.0, "bytes_per_day": 5 << 29},
    },
    "payload": {},
    "write_amplification": 2.25,
    "endurance_tb_written": 40.0,
    "life_years": 7.06,
}


@pytest.mark.parametrize(
    ("flash", "line"),
    [
        (
            FLASH,
            "agent 3.0 MiB/day, mmcblk0 2.5 GiB/day, amplification 2.2, lasts 7.1 years,"
            " life_time 0x01 0x02",
        ),
        (
            {
                **FLASH,
                **dict.fromkeys(("device", "life_time", "write_amplification", "life_years")),
                "sources": {"process": {"bytes": 1, "bytes_per_day": None}, "device": None},
            },
            "agent unknown, disk unknown, amplification unknown, life unknown",
        ),
        (None, ""),
    ],
)
def test_status_says_how_the_flash_wears_and_what_is_unknown(
    agent: Device, device: Device, flash: dict[str, Any] | None, line: str
) -> None:
    document = {**agent.status(), "at_us": 0}
    assert document["store"].pop("flash").keys() == FLASH.keys()
    document["store"] |= {"flash": flash} if flash else {}
    device.store.parent.mkdir()
    (device.store.parent / "status.json").write_text(json.dumps(document))
    done = shown(device, columns=200)
    assert done.returncode == 3
    assert [x.removeprefix("flash").strip() for x in done.stdout.splitlines() if "flash" in x] == (
        [line] if line else []
    )


def test_status_json_is_the_contract(agent: Device) -> None:
    done = shown(agent, "--json")
    document = as_json(done)
    assert document.keys() >= CONTRACT
    assert isinstance(document["uptime"], float)
    assert {"connected", "ack_from", "broker", "protocol"} <= document["link"].keys()
    for balance in document["ledger"].values():
        assert balance.keys() == {"produced", "delivered", "held", "dropped"}
        dropped = sum(balance["dropped"].values())
        assert balance["produced"] == balance["delivered"] + balance["held"] + dropped
    (condition,) = [c for c in document["conditions"] if c["name"] != "clock_untrusted"]
    assert condition.keys() >= {"name", "subject", "severity", "cause", "remedy", "since_us"}


def test_status_of_a_degraded_agent_ends_with_4(agent: Device) -> None:
    assert shown(agent).returncode == 4
    assert shown(agent, "--json").returncode == 4


def test_status_of_a_healthy_agent_ends_with_0(tmp_path: Path) -> None:
    device = Device(tmp_path, {"link": {"ack_from": "broker"}})  # the embedded broker
    with running(device):
        until(lambda: device.status()["status"] == "healthy", "all is well")
        assert shown(device).returncode == 0


def test_status_of_an_unhealthy_agent_ends_with_5_and_its_health_with_503(tmp_path: Path) -> None:
    settings = inbox(tmp_path, keep="all")
    store = {"path": str(tmp_path / "var" / "holdfast.db"), "bytes_max": 1024**2}
    device = Device(tmp_path, {**settings, "store": store})
    soundfile.write(tmp_path / "inbox" / "a.flac", np.zeros(60 * 16_000, np.int16), 16_000)
    with running(device):
        until(lambda: device.status()["status"] == "unhealthy", "the store is full")
        done = shown(device)
        assert done.returncode == 5
        assert "store_full (inbox)" in done.stdout
        assert Checked(device.socket).get("/api/v1/health")["status"] == "unhealthy"
    assert (tmp_path / "inbox" / "a.flac").exists(), "it waits for room"


def test_status_without_an_agent_shows_the_last_snapshot_with_its_age_and_ends_with_3(
    device: Device,
) -> None:
    with running(device):
        assert device.stop() == 0
    done = shown(device)
    assert done.returncode == 3
    assert done.stdout.startswith("NO AGENT RUNS.")
    assert " old." in done.stdout.splitlines()[0]
    assert "device-under-test" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    document = as_json(shown(device, "--json"))
    assert document.keys() >= CONTRACT
    assert document["snapshot_age_s"] >= 0


def test_status_of_a_killed_agent_shows_the_last_snapshot_too(device: Device) -> None:
    with running(device):
        until((device.store.parent / "status.json").exists, "there is a snapshot")
        device.kill()
        assert shown(device).returncode == 3


def test_status_without_agent_or_snapshot_says_what_to_do_and_ends_with_3(device: Device) -> None:
    done = shown(device)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "no agent answers" in done.stderr
    assert "holdfast run" in done.stderr


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", "\0" * 4096])
def test_a_snapshot_that_cannot_be_read_is_said_and_status_ends_with_3(
    device: Device, content: str
) -> None:
    """It is not fsynced: after a power cut it may be empty or full of zeros."""
    device.store.parent.mkdir()
    (device.store.parent / "status.json").write_text(content)
    done = shown(device)
    assert "Traceback" not in done.stderr
    assert done.returncode == 3


def test_status_of_an_agent_that_one_may_not_ask_does_not_say_that_none_runs(
    device: Device,
) -> None:
    """Its socket is for owner and group; a technician may be neither."""
    with running(device):
        until((device.store.parent / "status.json").exists, "there is a snapshot")
        device.socket.chmod(0)
        done = holdfast_unprivileged("status", "--config", str(device.config))
    assert "NO AGENT RUNS" not in done.stdout
    assert "ermission" in done.stdout + done.stderr


def test_status_shows_a_broker_by_its_ipv6_address(tmp_path: Path) -> None:
    link = {"broker_url": "mqtt://[fd00::1]:1883", "ack_from": "ingest"}
    device = Device(tmp_path, {"link": link})
    with running(device):
        assert "mqtt://[fd00::1]:1883" in shown(device).stdout


def test_long_names_stay_on_the_screen(tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    source = {"kind": "folder", "name": "a" * 32, "path": str(folder), "settle_s": 0.05}
    device = Device(tmp_path, {"audio": {"sources": [source]}, "device_id": "d" * 64})
    folder.mkdir()
    (folder / "a.flac").write_bytes((ROOT / "samples" / "fan.flac").read_bytes())
    with running(device):
        until(lambda: device.ledger("a" * 32 + ".segments")["held"] > 0, "a segment is kept")
        lines = shown(device).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("a" * 32 + ".segments") for line in lines)


def test_config_check_says_good_or_what_is_wrong(tmp_path: Path) -> None:
    good = holdfast("config", "check", "--config", "config/default.yaml")
    assert (good.returncode, good.stdout) == (0, "config/default.yaml: good\n")
    path = tmp_path / "wrong.yaml"
    path.write_text("link:\n  ack_form: ingest\n")
    wrong = holdfast("config", "check", "--config", str(path))
    assert wrong.returncode == 78
    assert f"{path}:2: link.ack_form: unknown key" in wrong.stderr
    assert "try: did you mean ack_from?" in wrong.stderr


def test_domains_restart_gives_the_domain_a_new_process(agent: Device) -> None:
    before = agent.status()["domains"]["audio"]["pid"]
    done = holdfast("domains", "restart", "audio", "--config", str(agent.config))
    assert done.returncode == 0
    assert "audio" in done.stdout
    until(lambda: agent.status()["domains"]["audio"]["pid"] not in (before, None), "a new process")
    until(lambda: agent.status()["domains"]["audio"]["ready"], "it is ready")


def test_domains_restart_of_an_unknown_domain_names_the_known_ones(agent: Device) -> None:
    done = holdfast("domains", "restart", "video", "--config", str(agent.config))
    assert done.returncode == 1
    assert "no domain 'video'" in done.stderr
    assert "known: audio" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["two words", "größe", "a/b", "a?b=c#d", "%41", "\n", "..", ".", "", "\N{SPEAKER}", "\udcff"],
)
def test_domains_restart_of_any_name_is_refused_with_those_that_exist(
    agent: Device, name: str
) -> None:
    done = holdfast("domains", "restart", "--config", str(agent.config), "--", name)
    assert done.returncode == 1, done.stderr
    assert "no domain " in done.stderr
    if name.isprintable():
        assert repr(name) in done.stderr
    assert "try: known: audio" in done.stderr
    assert "Traceback" not in done.stderr


def test_domains_restart_without_an_agent_ends_with_3(device: Device) -> None:
    done = holdfast("domains", "restart", "audio", "--config", str(device.config))
    assert done.returncode == 3
    assert "no agent answers" in done.stderr


@pytest.mark.parametrize("arguments", [["nothing"], ["status", "--nothing"], ["domains", "x"]])
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    assert holdfast(*arguments).returncode == 2


def test_the_json_of_status_is_one_line_of_one_document(agent: Device) -> None:
    lines = shown(agent, "--json").stdout.splitlines()
    assert len(lines) == 1
    json.loads(lines[0])
