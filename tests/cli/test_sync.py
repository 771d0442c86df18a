"""`holdfast sync`, on a real agent with a real broker: what it shows, and who obeys it."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.cli import sync, sync_view
from tests.cli.inbox import heard, inbox
from tests.outside import DEADLINE_S, HOLDFAST, ROOT, Device, Mosquitto, running, until

SEGMENTS = "inbox.segments"
RATE_BYTES_PER_S = 16 << 10
MESSAGE_BYTES_MAX = 2 * RATE_BYTES_PER_S  # Pace.message_bytes_max at that rate
QUOTA_BYTES = 100 << 30


class Ear:
    """Hears every message at the broker, with the instant at which it came."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[float, str, int]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "ear")
        self.client.on_connect = lambda c, *_: c.subscribe("#", 1)
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _on_message(self, _client: object, _user: object, message: mqtt.MQTTMessage) -> None:
        self.heard.append((time.monotonic(), message.topic, len(message.payload)))

    def at(self, *doors: str) -> list[tuple[float, int]]:
        """When messages at these doors came, and how large they were."""
        return [
            (when, size)
            for when, topic, size in list(self.heard)
            if any(f"/{door}" in topic for door in doors)
        ]

    def hears_heartbeats(self, count: int = 5) -> None:
        """Wait until so many more have come: what the link would have sent is there, too."""
        before = len(self.at("heartbeat"))
        until(lambda: len(self.at("heartbeat")) >= before + count, "heartbeats come")

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Site:
    """A broker, an ear on it and an agent."""

    def __init__(self, folder: Path, **link: Any) -> None:
        self.broker = Mosquitto(folder)
        settings = {
            **inbox(folder),
            "link": {
                "broker_url": self.broker.url,
                "ack_from": "broker",
                "heartbeat_s": 0.05,
                **link,
            },
        }
        self.folder = folder
        self.device = Device(folder, settings)
        self.broker.start()
        self.ear = Ear(self.broker.port)

    def command(self, *more: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(HOLDFAST), "sync", *more, "--config", str(self.device.config)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**os.environ, "COLUMNS": str(columns)},
        )

    def ordered(self, *more: str) -> dict[str, Any]:
        done = self.command(*more, "--json")
        assert done.returncode == 0, done.stderr
        state: dict[str, Any] = json.loads(done.stdout)
        return state

    def hear(self, name: str) -> None:
        """Take a recording in, until all its segments are kept."""
        before = self.device.ledger(SEGMENTS)["produced"]
        sample = ROOT / "samples" / "fan.flac"
        (self.folder / "inbox" / name).write_bytes(sample.read_bytes())
        until(lambda: self.device.ledger(SEGMENTS)["produced"] > before + 3, "segments are kept")
        until(lambda: heard(self.device), "all is heard")

    def crash(self) -> None:
        self.device.kill()
        self.device.start()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path, quota_bytes_per_day=QUOTA_BYTES)
    try:
        with running(found.device):
            yield found
    finally:
        found.ear.stop()
        found.broker.kill()


def test_pause_holds_back_resume_sends_limit_slows_and_all_survive_kill_9(site: Site) -> None:
    until(lambda: site.device.status()["link"]["connected"], "connected")
    state = site.ordered("pause", "--for", "2h")
    assert 7100 < state["paused_for_s"] <= 7200
    site.hear("a.flac")
    site.crash()
    site.ear.hears_heartbeats()
    assert site.ear.at("up", "blob") == []
    state = site.ordered()
    assert state["paused"]
    waiting = {one["name"]: one["records"] for one in state["backlog"]["streams"]}
    assert waiting[SEGMENTS] == site.device.ledger(SEGMENTS)["held"] > 3
    assert 7000 < state["paused_for_s"] <= 7200
    used_bytes = state["quota"]["used_bytes"]
    assert used_bytes > 0, "heartbeats count"
    site.ordered("limit", "16k")  # what was used by then is kept with it
    site.crash()
    begun = time.monotonic()
    state = site.ordered("resume")
    assert state["quota"]["used_bytes"] >= used_bytes
    assert state["limit"] == {
        "rate_bytes_per_s_max": RATE_BYTES_PER_S,
        "why": "order",
        "for_s": None,
    }
    until(lambda: site.device.ledger(SEGMENTS)["held"] == 0, "all is delivered")
    blob_bytes = int(state["backlog"]["bytes"] * 0.9)  # the rest is bodies, which shrink
    until(lambda: sum(n for _, n in site.ear.at("up", "blob")) > blob_bytes, "and heard")
    total = 0
    for when, size in site.ear.at("up", "blob"):
        total += size  # a message may be late, and never early
        assert total <= (when - begun + 1) * RATE_BYTES_PER_S + MESSAGE_BYTES_MAX
    assert total > 4 * MESSAGE_BYTES_MAX, "enough to be slowed down"
    state = site.ordered("limit", "off")
    assert state["quota"]["used_bytes"] >= used_bytes + total
    assert (state["paused"], state["limit"]["why"]) == (False, "settings")
    assert not {c["name"] for c in site.device.status()["conditions"]} & {
        *("sync_paused", "sync_limited", "quota_reached"),
    }


def test_now_connects_without_waiting_for_the_next_try(tmp_path: Path) -> None:
    site = Site(tmp_path, backoff_s_min=3600, backoff_s_max=3600)
    site.ear.stop()
    site.broker.kill()
    with running(site.device):
        until(
            lambda: "refused" in str(site.device.status()["conditions"]), "the first try has failed"
        )
        site.broker.start()
        try:
            state = site.ordered("now", "--unlimited", "10m")
            assert (state["limit"]["why"], state["limit"]["for_s"] > 500) == ("now", True)
            until(lambda: site.device.status()["link"]["connected"], "connected")
        finally:
            site.broker.kill()


def test_it_shows_in_a_table_what_a_technician_asks(site: Site) -> None:
    until(lambda: site.device.status()["link"]["connected"], "connected")
    site.ordered("pause")
    site.hear("a.flac")
    site.ordered("limit", "64k", "--for", "90min")
    done = site.command()
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: " ".join(line.split()) for line in lines if line.strip()}
    assert site.broker.url in rows["link"]
    assert "paused" in done.stdout
    assert "from the broker, none yet" in rows["acks"]
    records = site.device.ledger(SEGMENTS)["held"]
    assert rows["backlog"].startswith(f"backlog {records:,} records, ")
    assert "time to empty unknown" in " ".join(done.stdout.split())
    assert "64 KiB/s, by an operator's order, for 1.5 h more" in rows["limit"]
    assert "of 100.0 GiB used, begins anew in" in rows["quota"]
    assert rows["heartbeat"] == "heartbeat each 0 s"
    assert rows[SEGMENTS].split()[2] == f"{records:,}"
    status = subprocess.run(
        [str(HOLDFAST), "status", "--config", str(site.device.config)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert f"{records:,} records" in status.stdout
    assert "sync_paused (link)" in status.stdout
    assert "sync_limited (link)" in status.stdout
    done = site.command("now")
    assert done.returncode == 1
    assert "sending is paused" in done.stderr
    assert "holdfast sync resume" in done.stderr


def seen(**more: Any) -> dict[str, Any]:
    rates = {"acknowledged_bytes_per_s": 100.0, "arriving_bytes_per_s": 150.0}
    return {
        "backlog": {"records": 1234, "bytes": 5 << 20},
        "eta_s": None,
        "paused": False,
        "rate": rates,
        **more,
    }


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (seen(backlog=None), "unknown"),
        (seen(backlog={"records": 0, "bytes": 0}), "nothing waits"),
        (seen(eta_s=5400.0), "1,234 records, 5.0 MiB, empty in 1.5 h"),
        (seen(), "1,234 records, 5.0 MiB, it does not shrink"),
        (seen(paused=True), "1,234 records, 5.0 MiB, time to empty unknown"),
        (
            seen(rate={"acknowledged_bytes_per_s": 0.0, "arriving_bytes_per_s": 0.0}),
            "1,234 records, 5.0 MiB, time to empty unknown",
        ),
    ],
)
def test_the_backlog_in_a_line(document: dict[str, Any], line: str) -> None:
    assert sync_view.backlog(document) == line


def test_without_an_agent_it_says_what_to_do_and_ends_with_3(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    for order in ([], ["now"], ["pause"], ["resume"], ["limit", "64k"]):
        done = subprocess.run(
            [str(HOLDFAST), "sync", *order, "--config", str(device.config)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 3, done.stderr
        assert "no agent answers" in done.stderr


@pytest.mark.parametrize(
    "order",
    [
        ["limit"],
        ["limit", "fast"],
        ["limit", "-5"],
        ["limit", "99999999999999999999999999"],
        ["limit", "9" * 400],
        ["limit", "64k", "--for", "2"],
        ["pause", "--for", "soon"],
        ["pause", "--for", ""],
        ["now", "--unlimited", "-1h"],
        ["--config", "elsewhere.yaml", "pause"],
        ["--json", "pause"],
    ],
)
def test_a_wrong_command_line_ends_with_2(order: list[str]) -> None:
    done = subprocess.run(
        [str(HOLDFAST), "sync", *order], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        *(("off", None), ("2048", 2048), ("64k", 65_536), ("64K", 65_536), ("64 KiB/s", 65_536)),
        *(("1.5M", 3 << 19), ("1.5mb", 3 << 19), ("1g", 1 << 30)),
    ],
)
def test_a_rate_is_read(text: str, bytes_per_s: int | None) -> None:
    assert sync.rate(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90min", 5400), ("90 m", 5400), ("2h", 7200), ("1.5d", 129_600)],
)
def test_a_span_is_read(text: str, seconds: float) -> None:
    assert sync.seconds(text) == seconds


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["limit", "10"], "expected 1k to 931g in a second, found '10'"),
        (["limit", "off", "--for", "2h"], "holdfast sync now --unlimited SPAN"),
        (["pause", "--for", "0s"], "expected a span of 0.01s to 365d, found '0s'"),
        (["now", "--unlimited", "9999d"], "expected a span of 0.01s to 365d, found '9999d'"),
    ],
)
def test_what_an_agent_would_refuse_is_said_in_the_words_of_the_command(
    order: list[str], said: str
) -> None:
    done = subprocess.run(
        [str(HOLDFAST), "sync", *order],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_while_the_link_is_down_it_says_why_and_since_when(tmp_path: Path) -> None:
    device = Device(tmp_path, {"link": {"broker_url": "mqtt://127.0.0.1:1", "ack_from": "ingest"}})
    with running(device):
        until(lambda: "efused" in str(device.status()["link"]["down_cause"]), "it knows why")
        done = subprocess.run(
            [str(HOLDFAST), "sync", "--config", str(device.config)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        cause = device.status()["link"]["down_cause"]
    link, why, *_ = done.stdout.splitlines()
    assert re.fullmatch(r"link +down \d+ s, mqtt://127\.0\.0\.1:1, MQTT 5", link.rstrip())
    assert why.strip() == cause


def test_one_record_is_no_records() -> None:
    one = seen(backlog={"records": 1, "bytes": 1024}, eta_s=5.0)
    assert sync_view.backlog(one) == "1 record, 1 KiB, empty in 5 s"
