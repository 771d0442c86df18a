"""A broker is killed and comes back: its devices do so one after the other.

What is asserted is the shape; how long it takes is measured by bench/reconnect.py.
"""

import asyncio
import os
from pathlib import Path

from agent.config import Link
from tests.outside import Mosquitto, running
from tests.sim.crowd import Device, crowd_of

DEVICES = 2000 if os.environ.get("HOLDFAST_LONG") == "1" else 200
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
BOUND_S = 1.0  # of the first wait, in place of the default's four seconds
DEADLINE_S = 120.0


async def test_a_crowd_comes_back_spread_out_and_each_device_once(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with running(broker):
        async with (
            asyncio.timeout(DEADLINE_S),
            crowd_of(
                Device, broker.url, DEVICES, SEED, backoff_s_min=BOUND_S, heartbeat_s=60
            ) as crowd,
        ):
            assert not any(device.waits.drawn for device in crowd.devices)
            broker.kill()
            await crowd.lost()
            broker.start()
            await crowd.connected()
            firsts = [device.waits.drawn[0][1] for device in crowd.devices]
            assert all(len(device.served) == 2 for device in crowd.devices), "back, and once"
    quarters = [sum(i <= 4 * wait / BOUND_S < i + 1 for wait in firsts) for i in range(4)]
    assert sum(quarters) == DEVICES
    assert max(quarters) <= 0.35 * DEVICES, quarters


async def test_a_broker_that_stays_away_is_asked_more_and_more_slowly(tmp_path: Path) -> None:
    """Eight tries of each device: the waits' bounds double up to the longest, and stay there."""
    broker = Mosquitto(tmp_path)
    waits = {"backoff_s_min": 0.05, "backoff_s_max": 0.4, "heartbeat_s": 60}
    with running(broker):
        async with (
            asyncio.timeout(DEADLINE_S),
            crowd_of(Device, broker.url, 50, SEED, **waits) as crowd,
        ):
            broker.kill()
            while any(len(device.waits.drawn) < 8 for device in crowd.devices):
                await asyncio.sleep(0.02)
            drawn = [[wait for _, wait in device.waits.drawn] for device in crowd.devices]
            broker.start()
            await crowd.connected()
    for turn, bound_s in enumerate([0.05, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4]):
        longest_s = max(each[turn] for each in drawn)
        assert 0.8 * bound_s < longest_s <= bound_s


def test_the_defaults_spread_a_crowd_over_seconds() -> None:
    settings = Link(ack_from="ingest")
    assert settings.backoff_s_min >= 4
    assert settings.backoff_s_max >= 10 * settings.backoff_s_min
