"""The link against a real Mosquitto: acks, resume, refusals, presence, the embedded broker."""

import asyncio
import contextlib
import random
import socket
import sqlite3
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.protocol import ack, batch, blob
from agent.protocol.presence import Heartbeat
from agent.records import Position, Range, RecordType
from agent.store import streams
from agent.store.store import Store
from agent.sync.connection import Connection
from agent.sync.link import Link
from agent.sync.uplink import Uplink
from tests.e2e.judge import Judge
from tests.outside import Device, Mosquitto, free_port, program, running, until
from tests.store.test_store import segment

DEADLINE_S = 30.0
BLOB = bytes(i * 11 % 253 for i in range(300_000))


class Listener:
    """A plain client on the broker that notes every message."""

    def __init__(self, port: int, topic: str = "#") -> None:
        self.got: list[tuple[str, bytes, bool]] = []
        self.subscribed = False
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, f"listener-{random.random()}")
        self.client.on_connect = lambda c, *_: c.subscribe(topic, 1)
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = lambda _c, _u, m: self.got.append((m.topic, m.payload, m.retain))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        until(lambda: self.subscribed, "the listener is subscribed")

    def _on_subscribe(self, *_: object) -> None:
        self.subscribed = True

    def at(self, door: str) -> list[bytes]:
        return [payload for topic, payload, _ in list(self.got) if f"/{door}" in topic]

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Rig:
    """A store, a link and the conditions, as app.py puts them together."""

    def __init__(self, folder: Path, url: str, **settings: object) -> None:
        self.settings = msgspec.convert(
            {
                "ack_from": "ingest",
                "broker_url": url,
                "backoff_s_min": 0.05,
                "backoff_s_max": 0.1,
                "ack_timeout_s": 1.0,
                **settings,
            },
            config.Link,
        )
        self.clock = Clock()
        self.conditions = Conditions(self.clock)
        self.conditions_told: list[dict[str, str]] = []
        self.store = Store(config.Store(path=str(folder / "s.db")), self.clock)
        epoch = lambda: self.store.epoch  # noqa: E731
        self.uplink = Uplink(self.settings, "dev", self.store.outbox, self.conditions, self.clock)
        self.link = Link(
            *(self.settings, url, "dev", epoch, self.uplink, self._beat),
            *(self.conditions, self.clock, random.Random(1), "0.0.0"),
        )

    async def _beat(self) -> Heartbeat:
        return Heartbeat(
            device="dev",
            epoch=self.store.epoch,
            uptime_s=0,
            status="healthy",
            conditions=self.conditions_told,
            ledger=await self.store.ledger.by_epoch(),
        )

    def holds(self, name: str) -> bool:
        return any(c.name == name for c in self.conditions.all())

    def says(self, word: str) -> bool:
        return any(word in c.cause for c in self.conditions.all())

    async def tear(self, count: int) -> None:
        """Records of which every other one was dropped, and a last one that was not."""

        def operation(connection: sqlite3.Connection) -> None:
            key = streams.stream_id(connection, "x.segments")
            stamp = self.clock.stamp()
            for _ in range(count):
                streams.drop_unheld(connection, key, "full")
                streams.append(connection, key, RecordType.SEGMENT, stamp, b"{}")
            streams.append(connection, key, RecordType.SEGMENT, stamp, b"{}")

        await self.store._database.write(operation)
        self.store.outbox.more.set()

    async def fill(self, count: int, blob: bytes = b"flac") -> None:
        found = [(segment(i), blob) for i in range(count)]
        await self.store.spool.keep("x", found, Position(), "segments")

    async def held(self) -> int:
        return (await self.store.ledger.balances())["x.segments"].held


@asynccontextmanager
async def linked(rig: Rig) -> AsyncIterator[Rig]:
    async with rig.store:
        task = asyncio.create_task(rig.link.run())
        try:
            yield rig
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                raise AssertionError("the link ended by itself") from task.exception()


async def eventually(question: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not question():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


async def emptied(rig: Rig) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await rig.held():
            await asyncio.sleep(0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Mosquitto:
    found = Mosquitto(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def listener(broker: Mosquitto) -> Listener:
    found = Listener(broker.port)
    yield found
    found.stop()


async def test_with_the_brokers_ack_everything_is_delivered(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    async with linked(Rig(tmp_path, broker.url, ack_from="broker")) as rig:
        await rig.fill(30, b"flac" * 30_000)
        await emptied(rig)
        balance = (await rig.store.ledger.balances())["x.segments"]
        assert (balance.produced, balance.delivered) == (30, 30)

    def arrived() -> tuple[int, int]:  # the broker acknowledges before it passes on
        headers = [batch.decode(payload)[0] for payload in listener.at("up")]
        pieces = [blob.decode(payload) for payload in listener.at("blob")]
        return sum(h.count for h in headers), sum(len(data) for _, data in pieces)

    await eventually(lambda: arrived() >= (30, 30 * 120_000), "all is at the listener")
    assert arrived() == (30, 30 * 120_000)


async def test_without_an_ack_nothing_is_purged_and_it_is_sent_again(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    async with linked(Rig(tmp_path, broker.url, ack_timeout_s=0.2)) as rig:
        await rig.fill(3)
        await eventually(lambda: len(listener.at("up")) >= 2, "sent again")
        await eventually(lambda: rig.holds("ack_missing"), "the condition")
        assert await rig.held() == 3
        word = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(3)}})
        listener.client.publish("holdfast/v1/dev/ack", ack.encode(word), 1, retain=True)
        await emptied(rig)
        await eventually(lambda: not rig.holds("ack_missing"), "the condition is over")


async def test_an_ack_that_waits_at_the_broker_is_read_at_once(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        await rig.fill(5)
        word = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(2, [Range(4, 4)])}})
    listener.client.publish("holdfast/v1/dev/ack", ack.encode(word), 1, retain=True)
    async with linked(Rig(tmp_path, broker.url)) as rig:
        async with asyncio.timeout(DEADLINE_S):
            while await rig.held() != 2:
                await asyncio.sleep(0.01)


STREAM = b'{"epochs":{"e":{"x.segments":'


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"{}", b"\xff\xfe", b'{"epochs":1}', b"[]", b'{"x":' + b"[" * 100_000),
        *(STREAM + b'{"mark":-1}}}', STREAM + b'{"mark":%d}}}' % 10**30),
        *(STREAM + b'{"parts":{"1":-5}}}}', STREAM + b'{"parts":{"1":%d}}}}' % -(10**30)),
        STREAM + b'{"ranges":[[1,%d]]}}}' % 10**30,
    ],
    ids=range(11),
)
async def test_a_wrong_ack_is_a_condition_and_harms_nothing(
    tmp_path: Path, broker: Mosquitto, listener: Listener, said: bytes
) -> None:
    async with linked(Rig(tmp_path, broker.url)) as rig:
        await rig.fill(2)
        await eventually(lambda: rig.link.connected_since, "connected")
        listener.client.publish("holdfast/v1/dev/ack", said, 1)
        if said:  # an empty retained message is how a topic is cleared
            await eventually(lambda: rig.holds("ack_refused"), "the condition")
        beyond = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(99)}})
        listener.client.publish("holdfast/v1/dev/ack", ack.encode(beyond), 1)
        await eventually(lambda: rig.holds("ack_refused"), "the condition")
        assert await rig.held() == 2
        rig.conditions.clear("ack_refused", "link")
        mixed = {"a.unknown": ack.StreamAck(1), "x.segments": ack.StreamAck(1)}
        word = ack.encode(ack.Ack({rig.store.epoch: mixed}))
        listener.client.publish("holdfast/v1/dev/ack", word, 1)
        await eventually(lambda: rig.holds("ack_refused"), "the unknown stream is told")
        async with asyncio.timeout(DEADLINE_S):
            while await rig.held() != 1:  # and hides no other
                await asyncio.sleep(0.01)
        good = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(2)}})
        listener.client.publish("holdfast/v1/dev/ack", ack.encode(good), 1)
        await emptied(rig)
        await eventually(lambda: not rig.holds("ack_refused"), "the condition is over")


async def test_a_blob_goes_on_at_the_byte_where_the_far_copy_ends(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        await rig.fill(1, BLOB)
        parts = {1: 131_072}
        word = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(0, [], parts)}})
    listener.client.publish("holdfast/v1/dev/ack", ack.encode(word), 1, retain=True)
    async with linked(Rig(tmp_path, broker.url, ack_timeout_s=0.3)) as rig:
        await eventually(lambda: len(listener.at("up")) >= 3, "sent, and sent again twice")
    pieces = [blob.decode(payload) for payload in listener.at("blob")]
    # The second time at the latest the ack is known: nothing before its byte goes out again.
    starts = [header.start for header, _ in pieces]
    assert starts[-3:] == [131_072, 196_608, 262_144]
    assert starts[-6:-3] == starts[-3:]
    assert starts.count(0) <= 1
    assert b"".join(data for _, data in pieces[-3:]) == BLOB[131_072:]


async def test_the_judge_gets_a_blob_whole_although_the_broker_dies_in_it(
    tmp_path: Path, broker: Mosquitto
) -> None:
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    judge.start()
    try:
        async with linked(Rig(tmp_path, broker.url)) as rig:
            for _ in range(5):
                await rig.fill(4, BLOB)
                before = len(judge.seqs("x.segments"))
                await eventually(
                    lambda before=before: len(judge.seqs("x.segments")) > before, "some arrive"
                )
                broker.kill()
                broker.start()
            await emptied(rig)
            assert judge.seqs("x.segments") == list(range(1, 21))
            assert {flac for _, flac in judge.segments("x.segments").values()} == {BLOB}
            assert judge.faults == []
    finally:
        judge.stop()


async def test_birth_death_and_last_will(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    def words() -> list[bool]:
        return [msgspec.json.decode(payload)["online"] for payload in listener.at("presence")]

    async with linked(Rig(tmp_path, broker.url)):
        await eventually(lambda: words() == [True], "birth")
    await eventually(lambda: words() == [True, False], "a farewell")
    (tmp_path / "inbox").mkdir()
    link = {"broker_url": broker.url, "ack_from": "ingest"}
    with running(Device(tmp_path, {"link": link})):
        await asyncio.to_thread(until, lambda: words()[-1], "birth of the real agent")
    await eventually(lambda: words()[-1] is False, "the last will of the killed one")


async def test_an_unreachable_broker_is_a_condition_with_a_remedy(tmp_path: Path) -> None:
    async with linked(Rig(tmp_path, f"mqtt://127.0.0.1:{free_port()}")) as rig:
        await eventually(lambda: rig.says("refused"), "the cause")
        (condition,) = rig.conditions.all()
        assert condition.name == "link_down"
        assert condition.remedy


async def test_a_link_that_has_not_connected_yet_is_down(tmp_path: Path) -> None:
    server = await asyncio.start_server(silent, "127.0.0.1", free_port())
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with linked(Rig(tmp_path, url, connect_timeout_s=3600)) as rig:
        await eventually(lambda: rig.holds("link_down"), "the condition")
        assert rig.conditions.status() == "degraded"
    server.close()


async def test_a_broker_that_wants_a_password_is_named(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    strict = tmp_path / f"mosquitto-{broker.port}.conf"
    strict.write_text(strict.read_text().replace("anonymous true", "anonymous false"))
    with running(broker):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await eventually(lambda: rig.says("uthor"), "the cause")
            (condition,) = rig.conditions.all()
            assert "username" in condition.remedy


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes everything and says nothing."""
    await reader.read()
    writer.close()


async def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    server = await asyncio.start_server(silent, "127.0.0.1", free_port())
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with linked(Rig(tmp_path, url, connect_timeout_s=0.2)) as rig:
        await eventually(lambda: rig.says("no answer to CONNECT"), "the cause")
    server.close()


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
        server = await asyncio.start_server(serve, "127.0.0.1", free_port())
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with linked(Rig(tmp_path, url, ack_from="broker")) as rig:
            await rig.fill(3)
            await emptied(rig)
            assert rig.holds("mqtt5_unavailable")
            assert rig.link.state()["protocol"] == "3.1.1"
        server.close()


async def test_the_brokers_packet_limit_is_kept(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, extra="max_packet_size 20000\n")
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    with running(broker, judge):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await rig.fill(10, BLOB)
            await emptied(rig)
            assert len(judge.seqs("x.segments")) == 10


async def test_what_the_broker_refuses_is_said(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite holdfast/v1/dev/presence\ntopic read holdfast/v1/dev/ack\n")
    strict = tmp_path / f"mosquitto-{broker.port}.conf"
    strict.write_text(strict.read_text() + f"acl_file {acl}\n")
    with running(broker):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await rig.fill(1)
            await eventually(lambda: rig.holds("broker_refused"), "the condition")
            found = [c for c in rig.conditions.all() if c.name == "broker_refused"]
            assert {c.subject for c in found} <= {"heartbeat", "up/x.segments", "blob/x.segments"}
            assert all("Not authorized" in c.cause for c in found)
            assert all("holdfast/v1/dev" in c.remedy for c in found)
            assert await rig.held() == 1


async def test_a_packet_limit_that_is_too_small_is_said(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, extra="max_packet_size 5000\n")
    with running(broker):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await eventually(lambda: rig.says("5000 bytes at most"), "the cause")


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, which is also its own authority."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    openssl = program("openssl", "openssl")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o644)  # mosquitto gives up root before it reads it
    return certificate, key


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
async def test_tls_delivers_and_a_wrong_authority_does_not(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    broker = Mosquitto(tmp_path, extra=f"certfile {certificate}\nkeyfile {key}\n")
    url = broker.url.replace("mqtt:", "mqtts:")
    with running(broker):
        async with linked(Rig(tmp_path, url, ack_from="broker", ca_file=str(certificate))) as rig:
            await rig.fill(10, BLOB)
            await emptied(rig)
        for wrong, said in ((None, "CERTIFICATE_VERIFY_FAILED"), ("/absent.pem", "No such file")):
            async with linked(Rig(tmp_path, url, ca_file=wrong)) as rig:
                await eventually(lambda rig=rig, said=said: rig.says(said), "the cause")


async def test_a_password_that_is_no_text_is_said(tmp_path: Path, broker: Mosquitto) -> None:
    (tmp_path / "password").write_bytes(b"\xff\xfe\x00")
    secret = {"username": "dev", "password_file": str(tmp_path / "password")}
    async with linked(Rig(tmp_path, broker.url, **secret)) as rig:
        await eventually(lambda: rig.says("not text in UTF-8"), "the cause")


class Proxy:
    """Stands between device and broker; hangs up on new connections, or swallows everything."""

    def __init__(self, broker: Mosquitto) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.hang_up = False
        self.black_hole = False
        self.connects: list[int] = []  # the protocol versions that were asked for
        self._broker = broker
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first:
            self.connects.append(first[first.index(b"MQTT") + 4])
        if self.hang_up or not first:
            writer.close()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self._broker.port)
        self._writers += [writer, forth]
        forth.write(first)
        await asyncio.gather(self._copy(reader, forth), self._copy(back, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if not self.black_hole:
                    target.write(data)
        target.close()


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
            assert not rig.holds("mqtt5_unavailable")


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


async def test_a_server_that_hangs_in_the_handshake_does_not_hold_up_the_agents_end(
    tmp_path: Path,
) -> None:
    server = await asyncio.start_server(silent, "127.0.0.1", free_port())
    url = f"mqtts://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    link = {"broker_url": url, "ack_from": "ingest", "connect_timeout_s": 3600}
    device = Device(tmp_path, {"link": link})
    with running(device):
        assert await asyncio.to_thread(device.stop) == 0
    server.close()


async def test_a_lost_batch_is_sent_again_while_another_streams_acks_come(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    """The ingest has lost the only batch of y; acks of x must not hide that."""
    async with linked(Rig(tmp_path, broker.url, ack_timeout_s=0.5)) as rig:
        await rig.store.spool.keep("y", [(segment(0), b"")], Position(), "segments")
        acked = 0

        def batches_of_y() -> int:
            headers = [batch.decode(payload)[0] for payload in listener.at("up")]
            return sum(header.stream == "y.segments" for header in headers)

        async with asyncio.timeout(DEADLINE_S):
            while batches_of_y() < 2:
                await rig.fill(1)
                acked += 1
                word = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(acked)}})
                listener.client.publish("holdfast/v1/dev/ack", ack.encode(word), 1)
                await asyncio.sleep(0.05)
        await eventually(lambda: rig.says("y.segments"), "the condition names the stream")
        assert not rig.says("x.segments")


async def test_an_ack_of_another_epoch_does_not_displace_the_right_one(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    async with linked(Rig(tmp_path, broker.url)) as rig:
        await rig.fill(3)
        good = ack.encode(ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(3)}}))
        rig.uplink.heard(good)
        rig.uplink.heard(ack.encode(ack.Ack({"0" * 16: {"x.segments": ack.StreamAck(9)}})))
        await emptied(rig)


async def test_more_dropped_ranges_than_a_payload_holds_go_out_in_several_batches(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """Every other record dropped, 500 times; a payload holds 32 ranges."""
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    with running(judge):
        async with linked(Rig(tmp_path, broker.url, payload_bytes_max=8192)) as rig:
            await rig.tear(500)
            await emptied(rig)
            assert judge.seqs("x.segments") == [*range(2, 1001, 2), 1001]
            await eventually(lambda: judge.mark("x.segments") == 1001, "no gap is left")
            assert not rig.holds("link_down")


async def test_a_heartbeat_above_the_limit_is_said_and_ends_nothing(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with linked(
        Rig(tmp_path, broker.url, payload_bytes_max=8192, heartbeat_s=0.05, ack_from="broker")
    ) as rig:
        rig.conditions_told = [{"cause": "x" * 9000}]
        await eventually(lambda: rig.holds("heartbeat_too_large"), "the condition")
        since = rig.link.connected_since
        await rig.fill(3)
        await emptied(rig)
        assert rig.link.connected_since == since
        rig.conditions_told = []
        await eventually(lambda: not rig.holds("heartbeat_too_large"), "it is over")


class Stub:
    """A broker of this test's own: it answers to CONNECT and to nothing it is not told to."""

    CONNACK = bytes([0x20, 3, 0, 0, 0])

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.connects = 0
        self.extra = b""  # sent behind the answer to the first SUBSCRIBE
        self.pubacks = False
        self.published = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, body = await self._packet(reader)
                if kind == 0x10:
                    self.connects += 1
                    writer.write(self.CONNACK)
                elif kind & 0xF0 == 0x80:
                    writer.write(bytes([0x90, 4]) + body[:2] + bytes([0, 1]) + self.extra)
                elif kind & 0xF0 == 0x30:
                    self.published += 1
                    size = int.from_bytes(body[:2], "big")
                    if self.pubacks:
                        writer.write(bytes([0x40, 2]) + body[2 + size : 4 + size])
                elif kind == 0xC0:
                    writer.write(bytes([0xD0, 0]))
        writer.close()

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        kind, size, shift = (await reader.readexactly(1))[0], 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, await reader.readexactly(size)


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

    server = await asyncio.start_server(reset, "127.0.0.1", free_port())
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with linked(Rig(tmp_path, url, backoff_s_min=0.01, backoff_s_max=0.01)) as rig:
        await eventually(lambda: tries >= 200, "many tries")
        assert rig.holds("link_down")
    server.close()


async def test_what_is_out_without_an_ack_is_bounded(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url, unacked_bytes_max=300_000, batch_records_max=1)
    async with linked(rig):
        await rig.fill(40, b"flac" * 25_000)  # 4 MB
        await eventually(lambda: len(listener.at("up")) >= 3, "three are out")
        acked = 0
        while acked < 40:
            acked += 1
            word = ack.Ack({rig.store.epoch: {"x.segments": ack.StreamAck(acked)}})
            listener.client.publish("holdfast/v1/dev/ack", ack.encode(word), 1)
            out = min(acked + 3, 40)
            await eventually(lambda out=out: len(sent(listener)) >= out, "the next goes out")
            assert len(sent(listener)) <= out
        await emptied(rig)


def sent(listener: Listener) -> set[int]:
    return {batch.decode(payload)[0].first for payload in listener.at("up")}


async def test_a_refusal_is_over_when_the_broker_takes_the_topic_again(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite holdfast/v1/dev/presence\ntopic read holdfast/v1/dev/ack\n")
    strict = tmp_path / f"mosquitto-{broker.port}.conf"
    strict.write_text(strict.read_text() + f"acl_file {acl}\n")
    with running(broker):
        async with linked(Rig(tmp_path, broker.url, ack_from="broker", heartbeat_s=0.05)) as rig:
            await eventually(lambda: rig.holds("broker_refused"), "the condition")
            await rig.fill(2)
            since = rig.link.connected_since
            acl.write_text("topic readwrite holdfast/v1/dev/#\n")
            broker.reload()
            await emptied(rig)
            await eventually(lambda: not rig.holds("broker_refused"), "it is over")
            assert rig.link.connected_since == since


async def test_records_that_nobody_reads_are_said_when_the_broker_counts(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with linked(Rig(tmp_path, broker.url, ack_from="broker")) as rig:
        await rig.fill(1)
        await eventually(lambda: rig.holds("nobody_listens"), "the note")
        listener = Listener(broker.port)
        await rig.fill(1)
        await eventually(lambda: not rig.holds("nobody_listens"), "it is over")
        listener.stop()


def test_the_wait_between_two_tries_grows_and_differs(tmp_path: Path) -> None:
    """Of the devices of a site none comes back in the same second as all others."""
    waits = {seed: first_waits(tmp_path / str(seed), seed) for seed in range(8)}
    for found in waits.values():
        assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(found[:4]))
        assert all(4.0 <= wait <= 8.0 for wait in found[4:])
    assert len({tuple(found) for found in waits.values()}) == len(waits)


def first_waits(folder: Path, seed: int) -> list[float]:
    folder.mkdir()

    async def play() -> list[float]:
        waits: list[float] = []

        class Sleepless(random.Random):
            def uniform(self, a: float, b: float) -> float:
                share = super().uniform(a, b)
                waits.append(share * min(8.0, 2 ** len(waits)))
                return share * 1e-4

        rig = Rig(folder, f"mqtt://127.0.0.1:{free_port()}", backoff_s_min=1, backoff_s_max=8)
        rig.link._jitter = Sleepless(seed)
        async with linked(rig):
            await eventually(lambda: len(waits) >= 6, "six tries")
        return waits[:6]

    return asyncio.run(play())


async def test_a_stop_while_the_connection_ends_is_not_lost(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """Python's TaskGroup then raises the error of its child, and the cancellation is gone."""
    rig = Rig(tmp_path, broker.url, heartbeat_s=0.01)
    made: list[Connection] = []
    connection = rig.link._connection
    rig.link._connection = lambda: made.append(connection()) or made[-1]
    async with rig.store:
        for turns in range(4):
            task = asyncio.create_task(rig.link.run())
            await eventually(lambda: rig.link.connected_since, "connected")
            made[-1]._close("the network is gone")
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=DEADLINE_S)
            assert done, f"it runs on, {turns} turns of the loop after the end"
            rig.link.connected_since = None
