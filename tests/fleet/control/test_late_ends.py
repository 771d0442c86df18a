"""The end of a late command comes when its rollout is over: its way back is sent all the same."""

import asyncio
import time
from pathlib import Path

import pytest

from fleet.control import base, book
from fleet.control.carrying import hearing
from tests.fleet.control.rig import ControlProcess
from tests.fleet.control.test_rollouts import BACK, ID, Hall, _result
from tests.outside import DEADLINE_S, Mosquitto, running


@pytest.mark.parametrize("way", ["a controller that was killed before it looked", "a stick"])
async def test_the_way_back_is_sent(tmp_path: Path, url: str, way: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 2)
        hall.now_us = time.time_ns() // 1000 - 100_000_000
        await hall.start(counts="2", back="model.rollback", back_on="both", failures_max=1.0)
        good, late = hall.members
        await hall.say("succeeded", good)
        await hall.say("accepted", late)
        await hall.go(61)
        assert (await hall.report()).state == "finished"
        assert await hall.states(BACK) == ["planned", "planned"]
        end = [_result(late, ID, "succeeded")]
        if way == "a stick":
            async with hearing(url, lambda: time.time_ns() // 1000) as hear:
                await hear(end)
            assert await hall.states(BACK) == ["planned", "waiting"]
            return
        async with database.begin() as one:
            await book.heard(one, end, time.time_ns() // 1000, 0)
        broker = Mosquitto(tmp_path)
        with running(broker, ControlProcess(tmp_path, broker.url, url, "--lease-s", "0.5")):
            async with asyncio.timeout(DEADLINE_S):
                while await hall.states(BACK) != ["planned", "sent"]:
                    await asyncio.sleep(0.05)
