"""What brokers grant and lack, and what they say at the end, in words."""

import struct
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.known_time import KnownTime
from agent.sync.mqtt.brokers import MQTT5
from agent.sync.mqtt.connection import Call, Caller, Connection
from agent.sync.mqtt.terms import Terms
from tests.listener import Listener
from tests.outside import Mosquitto, running
from tests.sync.rig import Rig, Stub, emptied, eventually, linked

RECEIVE_MAXIMUM, QOS_MAXIMUM, RETAIN, PACKET_MAXIMUM = 0x21, 0x24, 0x25, 0x27
KEEP_ALIVE, SHARED, REASON, REFERENCE = 0x13, 0x2A, 0x1F, 0x1C


def told(code: int, *properties: bytes) -> bytes:
    """Reason code and properties of a packet."""
    whole = b"".join(properties)
    return bytes([code, len(whole)]) + whole


def number(key: int, form: str, value: int) -> bytes:
    return bytes([key]) + struct.pack(f"!{form}", value)


def text(key: int, value: str) -> bytes:
    return bytes([key]) + struct.pack("!H", len(value)) + value.encode()


async def test_the_narrower_bounds_hold(tmp_path: Path) -> None:
    granted = told(
        0,
        number(RECEIVE_MAXIMUM, "H", 7),
        number(PACKET_MAXIMUM, "I", 20_000),
        number(KEEP_ALIVE, "H", 11),
        number(RETAIN, "B", 0),
        number(SHARED, "B", 0),
        number(QOS_MAXIMUM, "B", 1),
    )
    settings = config.Link(ack_from="ingest", in_flight_max=50, keepalive_s=30)
    known = KnownTime(tmp_path / "known-time.json", Clock())
    async with Stub(b"\0" + granted) as stub:
        call = Call(stub.url, "dev", MQTT5)
        async with Connection(
            *(settings, Clock(), Caller(settings, Clock(), known), call),
            *(lambda *_: None, lambda *_: None, known),
        ) as connection:
            lost = connection.terms.lost
            assert connection.terms == Terms(7, 20_000 - 1024, 11, retains=False, lost=lost)
            assert connection.keepalive.interval_s == 11
            assert [word.split(":")[0] for word in lost] == [
                "no retained messages",
                "no shared subscriptions",
            ]


async def test_a_broker_without_qos_1_cannot_serve(tmp_path: Path) -> None:
    none = b"\0" + told(0, number(QOS_MAXIMUM, "B", 0))
    async with Stub(none) as stub, linked(Rig(tmp_path, stub.url)) as rig:
        await eventually(lambda: rig.says("QoS 0 alone"), "the cause")
        assert not rig.link.connected_since


async def test_mosquitto_without_qos_1_is_named(tmp_path: Path) -> None:
    with running(broker := Mosquitto(tmp_path, extra="max_qos 0\n")):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await eventually(lambda: rig.says("QoS"), "the cause")
            (condition,) = rig.conditions.all()
            assert "needs QoS 1" in condition.remedy


async def test_a_broker_that_retains_nothing_serves_and_it_is_said(tmp_path: Path) -> None:
    with running(broker := Mosquitto(tmp_path, extra="retain_available false\n")):
        listener = Listener(broker.port)
        async with linked(Rig(tmp_path, broker.url, ack_from="broker")) as rig:
            await rig.fill(3)
            await emptied(rig)
            assert rig.holds("broker_features")
            assert rig.says("no retained messages")
            await eventually(lambda: listener.at("presence"), "birth is told all the same")
        await eventually(lambda: len(listener.at("presence")) == 2, "and death")
        listener.stop()


@pytest.mark.parametrize("answers", [True, False], ids=["idle", "with messages in flight"])
async def test_another_device_with_the_same_id_is_named(answers: bool, tmp_path: Path) -> None:
    """Mosquitto 2.0.11 hangs up without a word then, so a stub says what the standard asks for."""
    async with Stub() as stub, linked(Rig(tmp_path, stub.url)) as rig:
        taken = told(0x8E)
        stub.extra, stub.pubacks = bytes([0xE0, len(taken)]) + taken, answers
        await eventually(lambda: rig.holds("client_id_twice"), "the condition")
        assert rig.says("another device connects as holdfast-dev")
        await eventually(lambda: rig.says("Session taken over"), "and why the link is down")
        stub.extra = b""
        await eventually(lambda: rig.link.connected_since, "connected again")
        await eventually(lambda: not rig.holds("link_down"), "for good")
        assert rig.holds("client_id_twice"), "it is not over at once"


@pytest.mark.parametrize(
    ("packet", "said", "remedy"),
    [
        (told(0x9D, text(REFERENCE, "b.example:1883")), "it names b.example:1883", "broker_url"),
        (told(0x9C), "Use another server", "link.broker_url"),
        (told(0x97, text(REASON, "10 MB a day")), "Quota exceeded (10 MB a day)", "operator"),
        (told(0x8B), "Server shutting down", "tries again"),
    ],
    ids=["moved", "another", "quota", "shutting down"],
)
async def test_what_the_broker_says_at_the_end_is_told(
    packet: bytes, said: str, remedy: str, tmp_path: Path
) -> None:
    async with Stub() as stub:
        stub.extra, stub.pubacks = bytes([0xE0, len(packet)]) + packet, True
        async with linked(Rig(tmp_path, stub.url)) as rig:
            await eventually(lambda: rig.says(said), "the cause")
            found = [c for c in rig.conditions.all() if said in c.cause]
            assert any(remedy in c.remedy for c in found)


@pytest.mark.parametrize(
    ("connack", "said"),
    [
        (told(0x9D, text(REFERENCE, "b.example")), "Server moved, it names b.example"),
        (told(0x8A), "Banned"),
        (told(0x85), "Client identifier not valid"),
    ],
    ids=["moved", "banned", "id"],
)
async def test_why_a_connect_was_refused_is_told(connack: bytes, said: str, tmp_path: Path) -> None:
    async with Stub(b"\0" + connack) as stub, linked(Rig(tmp_path, stub.url)) as rig:
        await eventually(lambda: rig.says(said), "the cause")


async def test_the_client_id_is_the_one_that_was_set(tmp_path: Path) -> None:
    async with Stub() as stub, linked(Rig(tmp_path, stub.url, client_id="plant/7")):
        await eventually(lambda: stub.asked, "asked")
        assert b"plant/7" in stub.asked[0]
        assert b"holdfast-dev" not in stub.asked[0]
