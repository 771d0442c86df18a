"""One connection: how it is made, what it keeps to, how it ends."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from agent.sync.mqtt.connection import Connection
from tests.e2e.judge import Judge
from tests.outside import Mosquitto, free_port, running
from tests.sync.rig import (
    BLOB,
    DEADLINE_S,
    Proxy,
    Rig,
    Stub,
    emptied,
    eventually,
    linked,
    served,
    silent,
)


async def test_an_unreachable_broker_is_a_condition_with_a_remedy(tmp_path: Path) -> None:
    async with linked(Rig(tmp_path, f"mqtt://127.0.0.1:{free_port()}")) as rig:
        await eventually(lambda: rig.says("refused"), "the cause")
        (condition,) = rig.conditions.all()
        assert condition.name == "link_down"
        assert condition.remedy


async def test_a_link_that_has_not_connected_yet_is_down(tmp_path: Path) -> None:
    async with served(silent) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, connect_timeout_s=3600)) as rig:
            await eventually(lambda: rig.holds("link_down"), "the condition")
            assert rig.conditions.status() == "degraded"


async def test_a_broker_that_wants_a_password_is_named(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    strict = tmp_path / f"mosquitto-{broker.port}.conf"
    strict.write_text(strict.read_text().replace("anonymous true", "anonymous false"))
    with running(broker):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await eventually(lambda: rig.says("uthor"), "the cause")
            (condition,) = rig.conditions.all()
            assert "username" in condition.remedy


async def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    async with served(silent) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, connect_timeout_s=0.2)) as rig:
            await eventually(lambda: rig.says("no answer to CONNECT"), "the cause")


async def test_a_broker_of_mqtt_3_serves_and_it_is_said(tmp_path: Path) -> None:
    """A proxy before Mosquitto refuses version 5 as MQTT 3.1.1 says: return code 1."""
    broker = Mosquitto(tmp_path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first[first.index(b"MQTT") + 4] == 5:
            writer.write(bytes([0x20, 2, 0, 1]))
            await writer.drain()
            writer.close()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", broker.port)
        forth.write(first)
        await asyncio.gather(copy(reader, forth), copy(back, writer))

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
        target.close()

    with running(broker):
        async with served(serve) as port:
            url = f"mqtt://127.0.0.1:{port}"
            async with linked(Rig(tmp_path, url, ack_from="broker")) as rig:
                await rig.fill(3)
                await emptied(rig)
                assert rig.holds("broker_features")
                assert rig.link.state()["protocol"] == "3.1.1"


async def test_the_brokers_packet_limit_is_kept(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, extra="max_packet_size 20000\n")
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    with running(broker, judge):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await rig.fill(10, BLOB)
            await emptied(rig)
            assert len(judge.seqs("x.segments")) == 10


async def test_a_packet_limit_that_is_too_small_is_said(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, extra="max_packet_size 5000\n")
    with running(broker):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await eventually(lambda: rig.says("5000 bytes at most"), "the cause")


async def test_a_broker_that_hung_up_is_asked_for_mqtt_5_again(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with Proxy(broker) as proxy:
        proxy.hang_up = True
        async with linked(Rig(tmp_path, proxy.url)) as rig:
            await eventually(lambda: proxy.connects[-1:] == [4], "3.1.1 is tried")
            assert proxy.connects == [5, 5, 4], "after two hang-ups, not one"
            proxy.hang_up = False
            await eventually(lambda: rig.link.connected_since, "connected")
            proxy.cut()
            await eventually(lambda: not rig.link.connected_since, "cut")
            await eventually(lambda: rig.link.connected_since, "connected again")
            assert rig.link.state()["protocol"] == "5"
            assert not rig.holds("broker_features")


async def test_a_link_that_swallows_everything_does_not_hold_up_the_end(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with Proxy(broker) as proxy:
        settings = {"in_flight_max": 1, "keepalive_s": 1200, "ack_timeout_s": 3600}
        async with linked(Rig(tmp_path, proxy.url, **settings)) as rig:
            await eventually(lambda: rig.link.connected_since, "connected")
            proxy.black_hole = True
            await rig.fill(20)
            async with asyncio.timeout(DEADLINE_S):
                while await rig.store.outbox.lease(1, 1000):
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "packet",
    [
        bytes([0x30, 6, 0, 2, 0xFF, 0xFE, 0, 0]),  # a topic that is not UTF-8
        bytes([0x30, 0x80, 0x80, 0x80, 0x04]) + b"x" * 200_000,  # 8 MiB are said to come
    ],
    ids=["topic", "size"],
)
async def test_a_packet_that_cannot_be_read_ends_the_connection_once(
    packet: bytes, tmp_path: Path
) -> None:
    async with Stub() as stub:
        stub.extra, stub.pubacks = packet, True
        async with linked(Rig(tmp_path, stub.url)) as rig:
            await eventually(
                lambda: rig.says("the broker send") or rig.says("the broker sent"), "said"
            )
            await eventually(lambda: stub.connects >= 2, "tried again")
            stub.extra = b""
            await eventually(lambda: rig.link.connected_since, "connected for good")


async def test_a_message_without_an_answer_ends_the_connection(tmp_path: Path) -> None:
    settings = {"ack_timeout_s": 0.2, "in_flight_max": 3}
    async with Stub() as stub, linked(Rig(tmp_path, stub.url, **settings)) as rig:
        await rig.fill(9)
        await eventually(lambda: rig.says("was not answered"), "the cause")
        await eventually(lambda: stub.connects >= 2, "tried again")
        stub.pubacks = True
        await eventually(lambda: rig.link.connected_since, "connected for good")


async def test_a_connection_reset_at_once_is_one_more_try(tmp_path: Path) -> None:
    """As a load balancer without a backend does."""
    tries = 0

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async with served(reset) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, backoff_s_min=0.01, backoff_s_max=0.01)) as rig:
            await eventually(lambda: tries >= 200, "many tries")
            assert rig.holds("link_down")


async def test_a_link_that_fell_silent_is_noticed_whatever_is_sent(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """One link is idle, the other one sends all the time; how soon is test_keepalive.py's."""

    async def falls_silent(name: str, **settings: object) -> None:
        (tmp_path / name).mkdir()
        patient = {"keepalive_s": 5, "ack_timeout_s": 3600, "in_flight_max": 1000}
        async with Proxy(broker) as proxy:
            rig = Rig(tmp_path / name, proxy.url, client_id=name, **patient, **settings)
            async with linked(rig):
                await eventually(lambda: rig.link.connected_since, "connected")
                since = rig.link.connected_since
                proxy.black_hole = True
                await eventually(lambda: rig.says("not even to a ping"), f"{name} is noticed")
                proxy.black_hole = False
                await eventually(
                    lambda: rig.link.connected_since not in (None, since), "connected again"
                )

    await asyncio.gather(
        falls_silent("idle", heartbeat_s=3600), falls_silent("sending", heartbeat_s=0.05)
    )


async def test_a_link_on_which_nothing_has_to_be_said_stays(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """It is pinged instead, by its own clock, and the answers come."""
    settings = {"keepalive_s": 5, "heartbeat_s": 3600}
    made: list[Connection] = []
    rig = Rig(tmp_path, broker.url, **settings)
    connection = rig.link._connection
    rig.link._connection = lambda: made.append(connection()) or made[-1]
    async with linked(rig):
        await eventually(lambda: rig.link.connected_since, "connected")
        alive, since = made[-1].keepalive, rig.link.connected_since
        begun = alive.received_at
        await eventually(lambda: alive.received_at > begun + 5, "pings were answered")
        assert rig.link.connected_since == since


async def test_a_broker_that_refuses_every_version_does_not_hold_up_the_loop(
    tmp_path: Path,
) -> None:
    """paho would answer by asking for MQTT 3.1, in a call that blocks."""
    asked: list[int] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(4096)
            asked.append(first[first.index(b"MQ") + 4])
            writer.write(bytes([0x20, 2, 0, 1]))
        finally:
            writer.close()

    async with served(refuse) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url)):
            await eventually(lambda: len(asked) >= 5, "asked")
        assert asked[:2] == [5, 4]
        assert set(asked) == {4, 5}
