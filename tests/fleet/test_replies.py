"""Acks that are larger than the broker takes: they get smaller, and hold up nobody."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from agent.protocol import ack
from agent.protocol.ack import Ack
from fleet.mqtt.connection import Connection
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.replies import Replies
from fleet.store.cloud import Cloud
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.outside import Mosquitto, running, until

STREAMS = [Sender("big", stream=f"{name}.x") for name in "abc"]
TAKEN_BYTES = 20_000
CONNECTS_MAX = 10  # one that goes on for ever comes to this within a second or two


@pytest.mark.parametrize("option", ["max_packet_size", "message_size_limit"])
def test_a_large_ack_holds_up_no_other(tmp_path: Path, option: str) -> None:
    """The first is said beforehand, by the second a connection is cut without a word."""
    broker = Mosquitto(tmp_path, extra=f"{option} {TAKEN_BYTES}\n")
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{tmp_path}/fleet.db")
    good = Sender("good")
    with (
        running(broker, ingest),
        Line(broker.port, good) as line,
        Line(broker.port, STREAMS[0]) as big,
    ):
        for at in range(0, 600, 100):
            seqs = range(10**6 + 2 * at, 10**6 + 2 * at + 200, 2)
            big.send(*[sender.batch(seqs) for sender in STREAMS])
        line.send(good.batch([1]))
        line.marked(1)
        big.send(*[sender.batch([1]) for sender in STREAMS])
        until(
            lambda: big.acks and [of.mark for of in big.acks[-1].epochs["e1"].values()] == [1] * 3,
            "the large one is told what fits",
        )
        assert len(ack.encode(big.acks[-1])) < TAKEN_BYTES
        line.send(good.batch([2]))
        line.marked(2)
        connects = ingest.said("connected to")
        assert connects == 1 if option == "max_packet_size" else connects < CONNECTS_MAX


class Busy:
    """A cloud whose devices go on: whenever acks are asked for, one more was touched."""

    prefix = "holdfast/v1"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.touch: Callable[[list[str]], None] = lambda _: None

    async def acks(self, devices: list[str], bytes_max: int) -> dict[str, Ack]:
        self.asked += devices
        self.touch([f"other-{len(self.asked)}"])
        await asyncio.sleep(0)
        return {device: Ack({}) for device in devices}


class Open:
    """A connection on which all is answered at once."""

    def __init__(self) -> None:
        self.ended = asyncio.get_running_loop().create_future()

    def room_bytes(self, topic: str) -> int:
        return 1 << 20

    async def publish(self, topic: str, payload: bytes) -> "asyncio.Future[None]":
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(None)
        return answer


async def test_those_whose_ack_failed_have_their_turn_although_others_never_end() -> None:
    cloud, connection = Busy(), Open()
    replies = Replies(cast(Cloud, cloud), Metrics(), 0.0)
    cloud.touch = replies.touch
    doubted = {f"doubted-{number}" for number in range(20)}
    for device in doubted:  # as when the broker ended the connection
        replies._failed(device, 100)
        replies._rested(device)
    replies.touch(["other"])
    telling = asyncio.create_task(replies.publish(cast(Connection, connection)))
    async with asyncio.timeout(30):
        while not doubted <= set(cloud.asked):
            await asyncio.sleep(0)
    telling.cancel()
    await asyncio.wait([telling])
