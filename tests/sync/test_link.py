"""The link against a real Mosquitto: acks, resume, refusals, presence, the embedded broker."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.protocol import ack, batch, blob
from agent.records import Position, Range, digest
from agent.sync.mqtt.connection import Connection
from tests.e2e.judge import Judge
from tests.listener import Listener
from tests.outside import Device, Mosquitto, running, until
from tests.store.test_store import segment
from tests.sync.rig import (
    BLOB,
    DEADLINE_S,
    Rig,
    emptied,
    eventually,
    linked,
    live,
    sent,
)


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


async def test_an_ack_of_another_life_of_the_epoch_purges_nothing(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    """The store was put back from a copy: what the far side has as #2 is not what is held here."""

    def said(tail: bytes) -> bytes:
        word = ack.StreamAck(2, tail=(2, digest(tail)))
        return ack.encode(ack.Ack({rig.store.epoch: {"x.segments": word}}))

    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        await rig.fill(3)
        leased = await rig.store.outbox.lease(9, 1 << 20)
        assert leased is not None
        rig.store.outbox.rewind()
        listener.client.publish("holdfast/v1/dev/ack", said(b"another"), 1, retain=True)
        async with live(rig):
            await eventually(lambda: rig.holds("ack_refused"), "the condition")
            assert rig.says("another record is stored")
            assert await rig.held() == 3
            assert await rig.store.outbox.lease(9, 1 << 20) is None, "it takes no room of the line"
            word = said(leased.records[1].body)
            listener.client.publish("holdfast/v1/dev/ack", word, 1, retain=True)
            async with asyncio.timeout(DEADLINE_S):
                while await rig.held() != 1:
                    await asyncio.sleep(0.01)
            await eventually(lambda: not rig.holds("ack_refused"), "the condition is over")
            await eventually(lambda: 3 in sent(listener), "and it goes on")


async def test_an_ack_of_another_life_is_not_believed_when_its_record_was_given_up(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        await rig.fill(3)
        word = ack.StreamAck(2, tail=(2, digest(b"another")))
        said = ack.encode(ack.Ack({rig.store.epoch: {"x.segments": word}}))
        listener.client.publish("holdfast/v1/dev/ack", said, 1, retain=True)
        async with live(rig):
            await eventually(lambda: rig.holds("ack_refused"), "the condition")
            name = rig.store.epoch, "x.segments"
            async with asyncio.timeout(DEADLINE_S):
                while rig.store.outbox.waits(name):  # what was out before comes back in its time
                    await asyncio.sleep(0.01)
            await rig.store.decisions.drop(name, Range(2, 2))
            rig.conditions.clear("ack_refused", "link")
            listener.client.publish("holdfast/v1/dev/ack", said, 1, retain=True)
            await eventually(lambda: rig.holds("ack_refused"), "it is refused once more")
            assert await rig.held() == 2


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


async def test_an_ack_that_another_ingest_read_earlier_and_sent_later_takes_nothing_back(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    async with linked(Rig(tmp_path, broker.url)) as rig:
        await rig.fill(3)
        for streams in ({"x.segments": ack.StreamAck(3)}, {"x.segments": ack.StreamAck(1)}, {}):
            rig.uplink.heard(ack.encode(ack.Ack({rig.store.epoch: streams})))
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


async def test_a_link_with_other_settings_goes_on_where_the_last_one_was(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    """The store runs on beneath: its epoch, what is held and the ledger do not change."""
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        async with live(rig):
            await rig.fill(5)
            await eventually(lambda: listener.at("up"), "sent, and nobody acknowledges it")
        before = (rig.store.epoch, await rig.store.ledger.balances())
        assert before[1]["x.segments"].held == 5
        with running(other := Mosquitto(tmp_path)):
            rig.configure(other.url, ack_from="broker", client_id="other", topic_prefix="plant/7")
            assert (rig.store.epoch, await rig.store.ledger.balances()) == before
            second = Listener(other.port, "plant/7/#")
            async with live(rig):
                await rig.fill(2)
                await emptied(rig)
            balance = (await rig.store.ledger.balances())["x.segments"]
            assert (balance.produced, balance.delivered, balance.dropped) == (7, 7, {})
            assert rig.store.epoch == before[0]
            await eventually(lambda: 7 in sent_last(second), "all of it went the new way")
            second.stop()


def sent_last(listener: Listener) -> set[int]:
    return {batch.decode(payload)[0].last for payload in listener.at("up")}
