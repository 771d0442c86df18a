"""Heartbeats wait together, and one that the database cannot take holds up no other."""

from collections.abc import AsyncIterator

import pytest

from agent.records import SEQ_MAX, Balance
from fleet.mqtt.beats import Beats
from fleet.mqtt.metrics import Metrics
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.look import rows
from tests.fleet.sender import Sender

HELD = Balance(1, 0, 1, {})
ASKED = "SELECT name FROM devices WHERE heartbeat_us IS NOT NULL ORDER BY name"


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as opened:
        yield opened


async def test_one_that_cannot_be_written_is_left_out_alone(cloud: Cloud) -> None:
    beats = Beats(cloud, Metrics(), 1.0)
    good = [f"press-{number}" for number in range(10)]
    for device in (*good[:7], "b\ud800d", *good[7:]):  # no database takes half a character
        beats.add(Sender(device).heartbeat(HELD))
    await beats.write()
    assert await rows(cloud, ASKED) == [(device,) for device in good]
    beats.add(Sender("lathe").heartbeat(HELD))
    await beats.write()
    assert ("lathe",) in await rows(cloud, ASKED)


@pytest.mark.parametrize("each", [2**53, SEQ_MAX])
async def test_drops_beyond_what_a_stream_can_have_are_left_out(cloud: Cloud, each: int) -> None:
    dropped = {f"reason {number}": each for number in range(1100)}
    bad = Sender("bad").heartbeat(Balance(1, 0, 1, dropped), "degraded")
    await cloud.note([], {"bad": bad, "good": Sender("good").heartbeat(HELD)})
    assert await rows(cloud, "SELECT name, status FROM devices ORDER BY name") == [
        ("bad", "degraded"),
        ("good", "healthy"),
    ]
    asked = "SELECT d.name, said_dropped FROM streams s JOIN devices d ON d.id = s.device"
    assert await rows(cloud, asked) == [("good", 0)]
