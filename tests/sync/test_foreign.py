"""What the other side says may be anything, and of any length: it is told, and ends nothing."""

import asyncio
import contextlib
import socket
import sqlite3
import ssl
import threading
import time
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.protocol import ack, grants
from agent.protocol.grants import Grant
from agent.store import streams
from agent.sync.mqtt import reasons
from agent.sync.up.uplink import Uplink
from tests.listener import Listener
from tests.outside import Mosquitto, free_port
from tests.sync.authority import Authority
from tests.sync.putting import Cloud, Device, cloud
from tests.sync.rig import Rig, Stub, eventually, linked, live

LONG = "n" * 900_000


async def test_an_ack_of_a_long_name_does_not_keep_heartbeats_back(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url, heartbeat_s=0.05, ack_timeout_s=30.0)
    async with linked(rig):
        await eventually(lambda: listener.at("heartbeat"), "connected")
        rig.uplink.heard(ack.encode(ack.Ack({rig.store.epoch: {LONG: ack.StreamAck(5)}})))
        await eventually(lambda: rig.says("nnn"), "the condition")
        (cause,) = [c.cause for c in rig.conditions.all() if c.name == "ack_refused"]
        assert "up to 5, but only 0 were ever produced" in cause
        rig.conditions_told = [{"cause": c.cause} for c in rig.conditions.all()]
        await eventually(lambda: b"nnn" in listener.at("heartbeat")[-1], "it is told")
        assert not rig.holds("heartbeat_too_large")


async def saved(rig: Rig, produced: int) -> None:
    """A stream of a former file, as far as it could be read."""

    def operation(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO streams (epoch, name, produced, delivered, settled)"
            " VALUES ('old', 'x.segments', ?1, ?1, ?1)",
            (produced,),
        )

    await rig.store._database.write(operation)


@pytest.mark.parametrize("last", [streams.SEQ_MAX + 1, 2**63 - 1])
async def test_an_ack_of_a_former_file_beyond_what_a_stream_can_have_is_refused(
    tmp_path: Path, broker: Mosquitto, last: int
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, live(rig):
        await saved(rig, 10)
        await rig.fill(3)
        await eventually(lambda: rig.link.connected_since, "connected")
        for mark in (1, 3):  # the second one met the mark of the first
            right = {"x.segments": ack.StreamAck(mark)}
            wrong = {"x.segments": ack.StreamAck(last)}
            rig.uplink.heard(ack.encode(ack.Ack({"old": wrong, rig.store.epoch: right})))
            async with asyncio.timeout(30.0):
                while await rig.held() > 3 - mark:  # and it hides no other
                    await asyncio.sleep(0.01)
        assert rig.says(f"up to {last}; no stream goes beyond")
        (lost,) = [
            of for epoch, of in (await rig.store.ledger.by_epoch()).items() if epoch == "old"
        ]
        assert lost["x.segments"].produced == 10
        rig.uplink.heard(ack.encode(ack.Ack({"old": {"x.segments": ack.StreamAck(12)}})))
        await eventually(lambda: not rig.holds("ack_refused"), "what is right is taken")
        assert await rig.store.ledger.faults() == []


async def test_an_ack_of_no_epoch_is_not_of_this_one(tmp_path: Path, broker: Mosquitto) -> None:
    async with linked(Rig(tmp_path, broker.url)) as rig:
        await rig.fill(5)
        rig.uplink.heard(ack.encode(ack.Ack({"": {"x.segments": ack.StreamAck(5)}})))
        assert rig.says("without a name")
        rig.uplink.heard(ack.encode(ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(4)}})))
        async with asyncio.timeout(30.0):
            while await rig.held() == 5:
                await asyncio.sleep(0.01)
        assert await rig.held() == 1


async def test_acks_that_nobody_takes_do_not_pile_up(tmp_path: Path) -> None:
    uplink: Uplink = Rig(tmp_path, "mqtt://127.0.0.1:1").uplink
    for number in range(20):
        uplink.heard(ack.encode(ack.Ack({f"{number}{LONG}": {}})))
    said = [epoch[:4] for word, _ in uplink._hearing._words for epoch in word.epochs]
    assert said == ["16nn", "17nn", "18nn", "19nn"]
    for _ in range(1000):
        uplink.heard(ack.encode(ack.Ack({})))
    assert len(uplink._hearing._words) == 64


def test_a_reason_is_told_in_few_words() -> None:
    said = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    said.ReasonString, said.ServerReference = "y" * 60_000, "z" * 60_000
    words = reasons.words(ReasonCode(PacketTypes.CONNACK, "Not authorized"), said)
    assert words.startswith("Not authorized, it names zzz")
    assert "(yyy" in words
    assert len(words) < 500


async def test_a_packet_that_cannot_be_read_is_told_in_few_words(tmp_path: Path) -> None:
    """paho's own error holds all of it."""
    topic = b"\xff" * 60_000
    size = len(topic) + 4
    async with Stub() as stub:
        stub.extra = bytes([0x30, size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
        stub.extra += len(topic).to_bytes(2, "big") + topic + b"\0\0"
        async with linked(Rig(tmp_path, stub.url)) as rig:
            await eventually(lambda: rig.says("cannot be read"), "it is told")
            (cause,) = [c.cause for c in rig.conditions.all() if c.name == "link_down"]
            assert len(cause) < 400


def publish(qos: int, mid: int) -> bytes:
    """A packet of no use."""
    return bytes([0x30 | qos << 1, 6, 0, 1, 0x78]) + mid.to_bytes(2, "big") + b"\0"


async def test_a_broker_that_sends_what_is_kept_until_it_releases_it(tmp_path: Path) -> None:
    async with Stub() as stub:
        stub.extra = b"".join(publish(2, mid) for mid in range(1, 5))
        async with linked(Rig(tmp_path, stub.url)) as rig:
            await eventually(lambda: rig.says("with QoS 2"), "it is told")


class Flood(threading.Thread):
    """A broker that sends over TLS without end, until it is `seen` that others have their turn.

    Each of TLS's records ends within a packet, so that there is always a rest to be read.
    """

    AMPLE_BYTES = 1 << 20

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.begun, self.seen = threading.Event(), threading.Event()
        self.in_time = False
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", free_port()))
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        plain, _ = self._socket.accept()
        with self._socket, self._context.wrap_socket(plain, server_side=True) as broker:
            broker.recv(4096)
            packet, sent_bytes = publish(0, 1), 0
            broker.sendall(bytes([0x20, 3, 0, 0, 0]) + packet[:3])
            end = time.monotonic() + 10.0
            with contextlib.suppress(OSError):  # the device hung up: then it had its turn
                while not self.seen.is_set() and time.monotonic() < end:
                    broker.sendall((packet[3:] + packet[:3]) * 1000)
                    sent_bytes += 8000
                    if sent_bytes > self.AMPLE_BYTES:
                        self.begun.set()
            self.in_time = self.seen.is_set()


async def test_a_broker_that_never_ends_leaves_time_for_the_rest(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("broker"))
    flood = Flood(context)
    flood.start()
    url, known = f"mqtts://127.0.0.1:{flood.port}", str(authority.file)
    async with linked(Rig(tmp_path, url, ca_file=known, ack_timeout_s=60.0)):
        await eventually(flood.begun.is_set, "it floods")
        flood.seen.set()
    await asyncio.to_thread(flood.join)
    assert flood.in_time, "the loop stood still until the flood was over"


class Evil:
    """Grants what it was told to, whoever asks."""

    def __init__(self, **grant: str) -> None:
        self._grant = grant

    async def answer(self, _device: str, payload: bytes) -> bytes:
        ask = grants.decode_ask(payload)
        return grants.encode(
            Grant(epoch=ask.epoch, stream=ask.stream, seq=ask.seq, sha256=ask.sha256, **self._grant)
        )


@pytest.mark.parametrize(
    ("grant", "told"),
    [
        ({"url": "http://127.0.0.1:99999/x"}, "what is no URL"),
        ({"url": "http://127.0.0.1:1/" + "x" * 15_000}, "Cannot connect to host"),
        ({"url": "n" * 15_000 + "://h/"}, "; expected https"),
        ({"refused": "n" * 15_000}, "the cloud refused: nnn"),
    ],
)
async def test_a_blob_goes_in_pieces_whatever_is_granted(
    tmp_path: Path, broker: Mosquitto, grant: dict[str, str], told: str
) -> None:
    far: Cloud
    async with cloud(broker.port, tmp_path, None) as far:
        far._grants = Evil(**grant)  # type: ignore[assignment]
        async with Device(tmp_path, broker.url).at_work() as device:
            assert not await device.put()
            assert device.says(told)
            (condition,) = device.conditions.all()
            assert (condition.name, len(condition.cause) < 400) == ("blobs_in_pieces", True)
