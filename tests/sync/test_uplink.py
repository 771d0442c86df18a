"""The uplink: what goes first, what waits, what is sent again, and how much of it is out."""

import asyncio
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.protocol import ack, batch, blob
from agent.records import Drop, Key, Range, Record, RecordType, Stamp
from agent.store import streams
from agent.store.outbox import Batch
from agent.sync.up.gate import Gate
from agent.sync.up.gathering import Gathering
from agent.sync.up.parcels import BLOB_BYTES_MAX, cut, halves
from agent.sync.up.sending import Parts
from agent.sync.up.waits import Overdue, Waits
from agent.sync.up.window import FIRST_BYTES, Window
from tests.listener import Listener
from tests.outside import Mosquitto
from tests.sync.rig import DEADLINE_S, Rig, Stub, eventually, linked
from tests.sync.scripted import Fate, Scripted
from tests.sync.test_poison import add

THIN_BYTES_PER_S = 50_000
OLD_S = 3600.0
PATIENT = {"ack_timeout_s": 2 * DEADLINE_S}  # nothing is sent twice because a machine is slow
STREAM, ALARMS = "x.segments", "alarms.segments"


def take(_: batch.Header, __: list[batch.Event]) -> Fate:
    return "take"


def random_body(number: int) -> bytes:
    """About 500 bytes that do not compress well."""
    return b'{"n":%d,"x":"%s"}' % (number, random.Random(number).randbytes(250).hex().encode())


async def test_an_alarm_does_not_wait_behind_a_backlog_on_a_thin_line(tmp_path: Path) -> None:
    async with Scripted(take) as broker:
        broker.bytes_per_s = THIN_BYTES_PER_S
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            await add(rig, *map(random_body, range(8000)), age_s=OLD_S)
        async with linked(Rig(tmp_path, broker.url, in_flight_max=500, **PATIENT)) as rig:
            for number in (1, 2, 3):
                await eventually(
                    lambda number=number: broker.came_bytes > number * 100_000, "it flows"
                )
                before = broker.came_bytes
                await add(rig, b'{"alarm":1}', stream=ALARMS)
                await eventually(
                    lambda number=number: broker.copy(ALARMS).word().mark == number, "the alarm"
                )
                assert broker.came_bytes - before < 2.0 * THIN_BYTES_PER_S
            live = [h for h in broker.headers if h.stream == ALARMS]
            assert all(header.live for header in live)
            assert not any(h.live for h in broker.headers if h.stream == STREAM)
            assert broker.copy().word().mark < 8000, "the backlog still waits"
            assert rig.link.connected_since
            broker.bytes_per_s = 0
            await eventually(lambda: broker.copy().word().mark == 8000, "all is there")
            assert set(broker.copy().times.values()) == {1}, "nothing was sent twice"


class Narrow(Stub):
    """A broker that grants four messages in flight, and answers none that carries records."""

    def __init__(self) -> None:
        super().__init__(bytes([0, 0, 3, 0x21, 0, 4]))
        self.pubacks = True
        self.came: list[str] = []  # the streams of the batches

    def _answer(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        topic = body[2 : 2 + int.from_bytes(body[:2], "big")].decode(errors="replace")
        if kind & 0xF0 == 0x30 and "/up/" in topic:
            self.came.append(topic.rpartition("/")[2])
        else:
            super()._answer(kind, body, writer)


async def test_places_are_kept_for_live_records_of_the_few_that_a_broker_grants(
    tmp_path: Path,
) -> None:
    settings = {"in_flight_max": 20, "ack_timeout_s": 3600, "batch_records_max": 1}
    async with Narrow() as broker:
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            await add(rig, *map(random_body, range(30)), age_s=OLD_S)
        async with linked(Rig(tmp_path, broker.url, **settings)) as rig:
            await eventually(lambda: broker.came == [STREAM] * 2, "what is old takes two")
            for number in (1, 2):
                await add(rig, b'{"alarm":1}', stream=ALARMS)
                await eventually(
                    lambda number=number: broker.came[2:] == [ALARMS] * number, "an alarm"
                )


async def test_what_was_dropped_last_is_told_though_nothing_else_comes(tmp_path: Path) -> None:
    async with Scripted(take) as broker, linked(Rig(tmp_path, broker.url)) as rig:
        await add(rig, *map(random_body, range(5)))
        await eventually(lambda: broker.copy().word().mark == 5, "all is there")

        def operation(connection: sqlite3.Connection) -> None:
            streams.drop_unheld(connection, streams.stream_id(connection, STREAM), "full")

        await rig.store._database.write(operation)
        await eventually(lambda: broker.copy().told == {6: "full"}, "it is told")


async def test_live_records_of_one_stream_pass_its_own_backlog(tmp_path: Path) -> None:
    async with Scripted(take) as broker:
        broker.bytes_per_s = THIN_BYTES_PER_S
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            await add(rig, *map(random_body, range(2000)), age_s=OLD_S)
        async with linked(Rig(tmp_path, broker.url, **PATIENT)) as rig:
            await eventually(lambda: broker.came_bytes > 50_000, "it flows")
            await add(rig, b'{"alarm":1}')
            await eventually(lambda: 2001 in broker.copy().records, "the alarm")
            assert len(broker.copy().records) < 1500
            broker.bytes_per_s = 0
            await eventually(lambda: broker.copy().word().mark == 2001, "all is there")
            assert set(broker.copy().times.values()) == {1}


async def test_a_big_blob_does_not_keep_others_waiting(tmp_path: Path) -> None:
    content = bytes(i * 7 % 251 for i in range(1_000_000))
    async with Scripted(take) as broker:
        broker.bytes_per_s = 4 * THIN_BYTES_PER_S
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await rig.fill(1, content)
            await eventually(lambda: len(broker.copy().blobs[1]) > 3, "it flows")
            await add(rig, b'{"alarm":1}', stream=ALARMS)
            await eventually(lambda: broker.copy(ALARMS).word().mark == 1, "the alarm")
            assert not broker.copy().records
            broker.bytes_per_s = 0
            await eventually(lambda: broker.copy().word().mark == 1, "the blob")
            assert broker.copy().blob(1) == content
    pieces = [h for h in broker.headers if isinstance(h, blob.Header)]
    assert sum(1 for _ in pieces) >= 16


async def test_what_a_stick_carried_is_not_sent_again(tmp_path: Path) -> None:
    """The ingest's word comes late; until then only what is live goes."""
    async with Scripted(take) as broker:
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            await add(rig, *[b"{}"] * 50, age_s=OLD_S)
            epoch = rig.store.epoch
        broker.acking = False
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await add(rig, b'{"alarm":1}', stream=ALARMS)
            await eventually(lambda: broker.copy(ALARMS).records, "what is live goes at once")
            assert not broker.copy().records
            rig.uplink.heard(ack.encode(ack.Ack({epoch: {STREAM: ack.StreamAck(48)}})))
            await eventually(lambda: broker.copy().records, "the rest goes")
            assert set(broker.copy().records) == {49, 50}


async def test_the_backlog_goes_although_the_ingest_never_said_a_word(tmp_path: Path) -> None:
    async with Scripted(take) as broker:
        broker.acking = False
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            await add(rig, *[b"{}"] * 5, age_s=OLD_S)
        async with linked(Rig(tmp_path, broker.url)):
            await eventually(lambda: len(broker.copy().records) == 5, "it goes")


async def test_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    """The ingest lost two records once; it has all that came later."""
    lost = {3, 7}

    def judge(header: batch.Header, _: list[batch.Event]) -> Fate:
        if header.first in lost:
            lost.discard(header.first)
            return "swallow"
        return "take"

    settings = {"ack_timeout_s": 0.5, "batch_records_max": 1}
    async with Scripted(judge) as broker, linked(Rig(tmp_path, broker.url, **settings)) as rig:
        await add(rig, *[b"{}"] * 10)
        await eventually(lambda: broker.copy().word().mark == 10, "all is there")
        sent = [header.first for header in broker.headers]
        assert sorted(sent) == [1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10]
        assert broker.connects == 1


async def test_what_trickles_in_goes_in_batches(tmp_path: Path) -> None:
    async with (
        Scripted(take) as broker,
        linked(Rig(tmp_path, broker.url, batch_s=1.0)) as rig,
    ):
        await eventually(lambda: rig.link.connected_since, "connected")
        for _ in range(100):
            await add(rig, b"{}")
        await eventually(lambda: broker.copy().word().mark == 100, "all is there")
        assert len(broker.headers) < 30


async def test_every_record_arrives_through_a_real_broker_in_many_batches(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        await add(rig, *map(random_body, range(20_000)), age_s=OLD_S)
    async with linked(Rig(tmp_path, broker.url, ack_from="broker")) as rig:

        async def held() -> int:
            return (await rig.store.ledger.balances())[STREAM].held

        async with asyncio.timeout(30):
            while await held():
                await asyncio.sleep(0.05)
        await eventually(lambda: count(listener) == 20_000, "all is at the listener")
    headers = [batch.decode(payload)[0] for payload in listener.at("up")]
    assert max(header.count for header in headers) > 100, "batches grow with the line"
    assert not any(header.live for header in headers)


def count(listener: Listener) -> int:
    return sum(batch.decode(payload)[0].count for payload in listener.at("up"))


class Desk:
    """What Gathering asks."""

    def __init__(self, waiting: Callable[[], list[object]]) -> None:
        self.more = asyncio.Event()
        self._waiting = waiting

    async def waiting(self) -> list[object]:
        return self._waiting()


class Waiting:
    def __init__(self, priority: int, records: int, size: int) -> None:
        self.priority, self.records, self.bytes = priority, records, size


def a_batch(*sizes: int, drops: tuple[Drop, ...] = (), span: Range | None = None) -> Batch:
    stamp = Stamp("b", 0, 0)
    records = [
        Record(STREAM, seq, RecordType.SEGMENT, stamp, b"{}", size, Key("e", 1, seq))
        for seq, size in enumerate(sizes, 1)
    ]
    return Batch("e", STREAM, records, list(drops), span or Range(1, len(sizes)), False)


@pytest.mark.parametrize("priority", [7, 8])
async def test_what_is_urgent_waits_for_nothing(priority: int) -> None:
    desk = Desk(lambda: [Waiting(priority, 1, 10)])
    gathering = Gathering(3600.0, desk, Clock())
    gathering.note(a_batch(0), 10_000, 500)
    gathering.begin()
    waiting = asyncio.create_task(gathering.wait(0, 10_000))
    done, _ = await asyncio.wait([waiting], timeout=30 if priority == 8 else 0.2)
    assert bool(done) == (priority == 8)
    waiting.cancel()


async def test_the_gate_lets_live_batches_first_then_live_pieces_then_the_rest() -> None:
    gate = Gate(Window(lambda: 0.0), 20, lambda: None)
    full = await gate.enter(FIRST_BYTES, live=False)
    live = await gate.enter(2000, live=True)
    passed: list[str] = []

    async def enter(name: str, *, live: bool, piece: bool) -> None:
        await gate.enter(FIRST_BYTES - 100, live=live, piece=piece)
        passed.append(name)

    for name, is_live, piece in (
        ("old", False, False),
        ("piece", True, True),
        ("alarm", True, False),
    ):
        asyncio.create_task(enter(name, live=is_live, piece=piece))  # noqa: RUF006
        await asyncio.sleep(0)
    assert passed == []
    gate.leave(live)  # at once: a line as fast as any
    gate.leave(full)
    await asyncio.sleep(0)
    assert passed == ["alarm", "piece", "old"]


async def test_alone_means_that_nothing_else_is_in_flight() -> None:
    gate = Gate(Window(lambda: 0.0), 20, lambda: None)
    before = await gate.enter(10, live=False)
    alone = asyncio.Event()
    over = asyncio.Event()

    async def be_alone() -> None:
        async with gate.alone():
            alone.set()
            assert gate.window.in_flight_bytes == 0
            flight = await gate.enter(1000, live=False, alone=True)
            await over.wait()
            gate.leave(flight)

    task = asyncio.create_task(be_alone())
    await asyncio.sleep(0)
    others = [asyncio.create_task(gate.enter(1, live=live)) for live in (True, False)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not alone.is_set(), "one is still in flight"
    gate.leave(before)
    await alone.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert gate.window.in_flight_bytes == 1000
    over.set()
    await task
    async with asyncio.timeout(30):
        await asyncio.gather(*others)


def test_a_lease_is_cut_where_its_blobs_are_large() -> None:
    half = BLOB_BYTES_MAX // 2
    parts = cut(a_batch(half, half, half, 10 * half, 0, 0))
    assert [part.span for part in parts] == [Range(1, 2), Range(3, 3), Range(4, 4), Range(5, 6)]
    assert [len(part.records) for part in parts] == [2, 1, 1, 2]


def test_of_a_stream_that_goes_on_only_what_was_overtaken_is_overdue() -> None:
    waits = Waits(30.0)
    leased = cut(a_batch(*[BLOB_BYTES_MAX] * 4))
    outs = [waits.add(parcel) for parcel in leased]
    for at, out in enumerate(outs):
        waits.taken(out, float(at))
    assert waits.settle(("e", STREAM), 0, [Range(2, 2)], 29.0, moved=False) == [outs[1]]
    late = waits.overdue(34.0)
    assert [(one.out, one.overtaken) for one in late] == [(outs[0], True)]
    assert not waits.missed(), "the stream goes on"
    late = waits.overdue(59.0)
    assert [(one.out, one.overtaken) for one in late] == [(outs[2], False), (outs[3], False)]
    assert waits.missed() == {STREAM: 60.0}
    assert waits.bytes == 0
    again = waits.add(leased[0])
    waits.taken(again, 60.0)
    assert waits.overdue(100.0) == [], "its patience is longer now"
    assert [one.out for one in waits.overdue(120.0)] == [again]


def test_only_acks_that_would_have_spoken_of_a_parcel_say_that_it_was_overtaken() -> None:
    waits = Waits(30.0)
    outs = [waits.add(parcel) for parcel in cut(a_batch(*[BLOB_BYTES_MAX] * 3))]
    for at, out in enumerate(outs):
        waits.taken(out, float(at))
    name, newest = ("e", STREAM), [Range(3, 99)]
    found = waits.settle(name, 0, [Range(3, 3)], 29.0, moved=False, listed=newest)
    assert found == [outs[2]]
    assert waits.overdue(34.0) == [], "nothing is known of them"
    assert waits.settle(name, 0, [], 35.0, moved=False, listed=[Range(2, 9)]) == []
    assert [(one.out, one.overtaken) for one in waits.overdue(36.0)] == [(outs[1], True)]
    assert [(one.out, one.overtaken) for one in waits.overdue(59.0)] == [(outs[0], False)]


def test_an_ingest_that_takes_in_a_blob_slowly_is_not_sent_it_again() -> None:
    waits, parts = Waits(30.0), Parts()
    name = ("e", STREAM)
    (out,) = [waits.add(parcel) for parcel in cut(a_batch(BLOB_BYTES_MAX))]
    waits.taken(out, 0.0)
    for at, size in enumerate([1000, 2000, 3000, 3000, 3000], 1):
        for grown in parts.learn({(name, 1): size}):
            waits.goes_on(grown, at * 20.0)
        assert waits.overdue(at * 20.0 + 9.0) == ([] if at < 5 else [Overdue(out, False)])
    assert waits.missed() == {STREAM: 60.0}, "it stands still"


def test_halves_leave_no_seq_out() -> None:
    drops = (Drop(1, 2, "full"), Drop(4, 5, "full"))
    leased = Batch("e", STREAM, [], list(drops), Range(1, 6))
    (whole,) = cut(leased)
    first, second = halves(whole)
    assert (first.span, second.span) == (Range(1, 3), Range(4, 6))
    assert (first.drops, second.drops) == ([drops[0]], [drops[1]])
    assert halves(first) == []
    (alone,) = cut(a_batch(0))
    assert halves(alone) == []
