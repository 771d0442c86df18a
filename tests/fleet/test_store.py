"""What the database holds, and what it says of it, in both databases."""

import asyncio
import hashlib
import itertools
import random
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from agent.errors import ConfigError, StoreError, StoreLocked
from agent.protocol import ack, batch, envelope
from agent.protocol.ack import StreamAck
from agent.records import SEQ_MAX, Balance, Range
from fleet.store import database, registry
from fleet.store.cloud import UNFIT_MAX, Arrival, Cloud, Verdict
from tests.fleet.look import content, rows, seqs
from tests.fleet.sender import Sender
from tests.fleet.test_model import SEED

SENDER = Sender()


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as opened:
        yield opened


async def acked(cloud: Cloud, sender: Sender = SENDER) -> StreamAck:
    """Without the digest of the record at the mark, of which test_lives.py speaks."""
    word = await cloud.ack(sender.device)
    return msgspec.structs.replace(word.epochs[sender.epoch][sender.stream], tail=None)


async def refused(cloud: Cloud) -> list[str]:
    return [cause for (cause,) in await rows(cloud, "SELECT cause FROM refused ORDER BY id")]


async def test_a_record_is_stored_once_however_often_it_comes(cloud: Cloud) -> None:
    first = await cloud.store([SENDER.batch(range(1, 501)), SENDER.batch(range(1, 501))])
    again = await cloud.store([SENDER.batch(range(401, 601))])
    assert (first.records_new, first.records_known) == (500, 500)
    assert (again.records_new, again.records_known) == (100, 100)
    assert await seqs(cloud, SENDER.device) == list(range(1, 601))
    assert await acked(cloud) == StreamAck(600)
    assert again.streams == {(SENDER.device, SENDER.epoch, SENDER.stream)}


async def test_what_is_stored_is_what_was_sent(cloud: Cloud) -> None:
    body = msgspec.json.encode({"text": "grüße 漢字 \x00 \U0001f600"})
    await cloud.store([SENDER.records([SENDER.record(1, body=body)])])
    asked = "SELECT device, epoch, stream, seq, type, timebound, boot, mono_ns, body FROM events"
    ((*identity, kept),) = await rows(cloud, asked)
    assert identity == ["press-7", "e1", "a.segments", 1, "t.v1", True, "boot-1", 1]
    assert kept.encode() == body
    assert await rows(cloud, "SELECT time_us FROM records") == [(1_700_000_000_000_001,)]


async def test_ranges_above_a_gap_are_told_until_it_closes(cloud: Cloud) -> None:
    await cloud.store([SENDER.batch([5, 6]), SENDER.batch([9])])
    assert await acked(cloud) == StreamAck(0, [Range(5, 6), Range(9, 9)])
    await cloud.store([SENDER.batch([7, 8])])
    assert await acked(cloud) == StreamAck(0, [Range(5, 9)])
    await cloud.store([SENDER.batch([1, 2, 3, 4])])
    assert await acked(cloud) == StreamAck(9)


async def test_told_ranges_let_the_mark_pass_and_a_record_wins_over_them(cloud: Cloud) -> None:
    await cloud.store([SENDER.batch([1, 10], [(2, 5, "full"), (6, 9, "dead")])])
    assert await acked(cloud) == StreamAck(10, dead=[Range(6, 9)])
    verdict = await cloud.store([SENDER.batch([7])])
    assert verdict.records_new == 1
    told = "SELECT first, last, reason FROM told ORDER BY first"
    assert await rows(cloud, told) == [(2, 5, "full"), (6, 6, "dead"), (8, 9, "dead")]
    await cloud.store([SENDER.batch([], [(6, 9, "operator")])])
    assert await rows(cloud, told) == [
        (2, 5, "full"),
        (6, 6, "operator"),
        (8, 9, "operator"),
    ]
    await cloud.store([SENDER.batch([], [(6, 9, "dead")])])
    assert (await rows(cloud, told))[1] == (6, 6, "operator"), "an old word undid a newer one"
    assert (await rows(cloud, "SELECT told FROM streams")) == [(7,)]
    assert await seqs(cloud, SENDER.device) == [1, 7, 10]


async def test_a_record_counts_when_its_blob_is_whole(cloud: Cloud) -> None:
    sound = bytes(range(200))
    await cloud.store([SENDER.piece(2, sound, 50, 150)])
    assert await acked(cloud) == StreamAck()
    await cloud.store([SENDER.batch([1]), SENDER.batch([2], blob_bytes=200)])
    assert await acked(cloud) == StreamAck(1)
    await cloud.store([SENDER.piece(2, sound, 0, 80), SENDER.piece(2, sound, 60, 70)])
    assert await acked(cloud) == StreamAck(1, parts={2: 150})
    verdict = await cloud.store([SENDER.piece(2, sound, 140, 200), SENDER.piece(2, sound, 0, 200)])
    assert verdict.blobs_done == 1
    assert await acked(cloud) == StreamAck(2)
    assert await content(cloud, 2) == sound


async def test_a_blob_that_is_whole_before_its_record_waits_for_it(cloud: Cloud) -> None:
    sound = b"x" * 100
    await cloud.store([SENDER.piece(1, sound, 0, 100)])
    assert await acked(cloud) == StreamAck(0, parts={1: 100})
    await cloud.store([SENDER.batch([1], blob_bytes=100)])
    assert await acked(cloud) == StreamAck(1)


@pytest.mark.parametrize("record_first", [True, False])
async def test_a_blob_that_is_not_what_its_record_says_is_thrown_away(
    cloud: Cloud, record_first: bool
) -> None:
    sound = bytes(range(100))
    body = msgspec.json.encode({"sha256": hashlib.sha256(sound).hexdigest()})
    record = SENDER.records([SENDER.record(1, 100, body)])
    wrong = SENDER.piece(1, b"?" * 100, 0, 60), SENDER.piece(1, sound, 60, 100)
    for arrival in (record, *wrong) if record_first else (*wrong, record):
        await cloud.store([arrival])
    assert await acked(cloud) == StreamAck()
    assert await rows(cloud, "SELECT count(*) FROM pieces") == [(0,)]
    assert "sha256" in (await refused(cloud))[0]
    await cloud.store([SENDER.piece(1, sound, 50, 100), SENDER.piece(1, sound, 0, 50)])
    assert await acked(cloud) == StreamAck(1)
    assert await content(cloud, 1) == sound


async def test_a_blob_in_too_many_ranges_is_kept_when_it_comes_in_order(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fleet.store.blobs.ISLANDS_MAX", 3)
    sound = bytes(range(100))
    apart = [SENDER.piece(1, sound, at, at + 1) for at in range(1, 20, 2)]
    for some in (apart[:5], apart[5:]):  # in one transaction, and from the table in the next
        assert (await cloud.store(some)).refused == 0
    kept = "SELECT start FROM pieces ORDER BY start"
    assert await rows(cloud, kept) == [(1,), (3,), (5,)]
    assert "a piece of the blob of record #1 is not kept" in caplog.text
    await cloud.store([SENDER.piece(1, sound, 6, 8), SENDER.piece(1, sound, 8, 9)])
    assert len(await rows(cloud, kept)) == 5, "next to one that is there"
    await cloud.store([SENDER.piece(1, sound, at, at + 10) for at in range(0, 100, 10)])
    assert (await cloud.store([SENDER.batch([1], blob_bytes=100)])).records_new == 1
    assert await content(cloud, 1) == sound


async def test_pieces_of_another_size_give_way_to_the_record(cloud: Cloud) -> None:
    await cloud.store([SENDER.piece(1, b"a" * 90, 0, 90)])
    await cloud.store([SENDER.batch([1], blob_bytes=100)])
    assert await acked(cloud) == StreamAck()
    assert (await cloud.store([SENDER.piece(1, b"a" * 90, 0, 90)])).refused == 1
    await cloud.store([SENDER.piece(1, b"b" * 100, 0, 100)])
    assert await acked(cloud) == StreamAck(1)
    assert await content(cloud, 1) == b"b" * 100


async def test_another_record_under_a_stored_seq_is_kept_as_refused(cloud: Cloud) -> None:
    await cloud.store([SENDER.batch([1, 2])])
    other = SENDER.record(2, body=b'{"n":"another"}')
    verdict = await cloud.store([SENDER.records([SENDER.record(1), other])])
    assert (verdict.records_new, verdict.records_known, verdict.refused) == (0, 2, 1)
    assert "another body" in (await refused(cloud))[0]
    assert await rows(cloud, "SELECT body FROM events WHERE seq = 2") == [('{"n":2}',)]
    assert await rows(cloud, "SELECT payload FROM refused") == [(b'{"n":"another"}',)]


NONSENSE = {
    "no envelope": Arrival("holdfast/v1/press-7/up/a", b"hello"),
    "nothing": Arrival("holdfast/v1/press-7/up/a", b""),
    "another's topic": Arrival("holdfast/v1/liar/up/a.segments", SENDER.batch([1]).payload),
    "another stream's topic": Arrival("holdfast/v1/press-7/up/b", SENDER.batch([1]).payload),
    "a strange door": Arrival("holdfast/v1/press-7/down/a", SENDER.batch([1]).payload),
    "a strange topic": Arrival("elsewhere", SENDER.batch([1]).payload),
    "a name with a NUL": Sender("a\0b").batch([1]),
    "a name of spaces": Sender("a\u2028b").batch([1]),
    "a long name": Sender("a" * 300).batch([1]),
    "an odd epoch": Sender(epoch="a/b").batch([1]),
    "seq 0": SENDER.batch([0, 1]),
    "a huge seq": SENDER.batch([1, 2**63]),
    "a seq that no device makes": SENDER.batch([1, SEQ_MAX + 1]),
    "a drop that no device makes": SENDER.batch([1], [(5, SEQ_MAX + 1, "full")]),
    "a blob that no device makes": SENDER.piece(SEQ_MAX + 1, b"abc", 0, 3),
    "an odd order": SENDER.batch([1, 3, 2, 4]),
    "a seq twice": SENDER.batch([1, 2, 2, 3]),
    "a drop that is none": SENDER.batch([1], [(9, 5, "full")]),
    "a huge drop": SENDER.batch([1], [(5, 2**64, "full")]),
    "half a batch": Arrival(SENDER.batch([1]).topic, SENDER.batch(range(1, 99)).payload[:-9]),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_what_makes_no_sense_is_kept_with_its_cause(cloud: Cloud, what: str) -> None:
    verdict = await cloud.store([NONSENSE[what], Sender("other").batch([1])])
    assert (verdict.refused, verdict.records_new) == (1, 1), "good records came with it"
    await cloud.store([NONSENSE[what]])
    asked = "SELECT times, payload FROM refused"
    assert await rows(cloud, asked) == [(2, NONSENSE[what].payload)]
    assert await seqs(cloud, SENDER.device) == []


SPOILT = {
    "a body that is not UTF-8": {},
    "a type with a NUL": {"type": "a\0b"},
    "a boot with a line feed": {"boot": "a\nb"},
    "a time that is none": {"time": "yesterday"},
    "a time without a zone": {"time": "2026-01-01T00:00:00"},
    "a monotonic time beyond 64 bits": {"monotonic": 2**70},
    "a negative blob": {"blobsize": -5},
    "a huge blob": {"blobsize": 2**40},
}


def spoilt(changes: dict[str, Any]) -> Arrival:
    """A batch of three whose second record is as no agent sends it."""
    header, events = batch.decode(SENDER.batch([1, 2, 3]).payload)
    events[1] = msgspec.structs.replace(events[1], **changes)
    if not changes:
        events[1] = msgspec.structs.replace(events[1], data=msgspec.Raw(b'{"n":"\xff"}'))
    text = msgspec.json.encode(events)
    header = msgspec.structs.replace(header, digest=hashlib.sha256(text).hexdigest())
    payload = envelope.seal(header, zstandard.ZstdCompressor().compress(text))
    return Arrival(SENDER.batch([1]).topic, payload)


@pytest.mark.parametrize("what", SPOILT)
async def test_one_record_that_cannot_be_stored_holds_up_no_other(cloud: Cloud, what: str) -> None:
    verdict = await cloud.store([SENDER.batch([4]), spoilt(SPOILT[what]), SENDER.batch([5])])
    assert (verdict.records_new, verdict.refused) == (4, 1)
    assert await seqs(cloud, SENDER.device) == [1, 3, 4, 5]
    assert await acked(cloud) == StreamAck(1, [Range(3, 5)], refused=[Range(2, 2)])
    assert "#2" in (await refused(cloud))[0]
    await cloud.store([SENDER.batch([], [(2, 2, "dead")])])
    assert await acked(cloud) == StreamAck(5, dead=[Range(2, 2)]), (
        "its device has told that it is dead"
    )


async def test_a_record_beyond_64_bits_costs_no_transaction_of_its_own(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = counted(cloud, monkeypatch)
    verdict = await cloud.store([monotonic(dict.fromkeys(range(1, 501), 2**63), 500)])
    assert (verdict.refused, count()) == (500, 1)
    assert [one.first for one in (await acked(cloud)).refused] == list(range(1, 501))


@pytest.mark.parametrize("unfit", [3, 20, 21, 1000])
async def test_many_records_that_the_database_does_not_take_are_refused_together(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, unfit: int
) -> None:
    """They are looked for one by one, but not without end: all others wait meanwhile."""
    monkeypatch.setattr("fleet.store.rows.INTEGER_MAX", 2**80)  # so that nobody looks before
    count = counted(cloud, monkeypatch)
    bad = range(901, 901 + unfit)
    arrival = monotonic(dict.fromkeys(bad, 2**70), 2000, [(2001, 2005, "full")])
    verdict = await cloud.store([arrival, Sender("other").batch([1])])
    fits = [seq for seq in range(1, 2001) if seq not in bad]
    if unfit <= UNFIT_MAX:
        assert (verdict.refused, verdict.records_new) == (unfit, len(fits) + 1)
        assert await seqs(cloud, SENDER.device) == fits
    else:
        assert verdict.refused == UNFIT_MAX + 1
        assert await seqs(cloud, SENDER.device) == list(range(1, 901))
        assert any("#921 to #2000" in cause for cause in await refused(cloud))
    word = await acked(cloud)
    assert word.mark == 900
    there = {
        seq for span in (*word.ranges, *word.refused) for seq in range(span.first, span.last + 1)
    }
    assert there == set(range(901, 2006))
    assert await seqs(cloud, "other") == [1]
    assert count() < 300
    again = await cloud.store([arrival])
    assert (again.records_new, again.refused) == (0, verdict.refused)


def counted(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many transactions bring what came."""
    ours, count = cloud._transact, itertools.count()

    def transact(*what: Any) -> Any:
        next(count)
        return ours(*what)

    monkeypatch.setattr(cloud, "_transact", transact)
    return lambda: next(count)


def monotonic(
    said: dict[int, int], last: int, drops: Sequence[tuple[int, int, str]] = ()
) -> Arrival:
    """Records 1 to `last`, some of them with another monotonic time."""
    records = [SENDER.record(seq) for seq in range(1, last + 1)]
    for seq, mono_ns in said.items():
        stamp = msgspec.structs.replace(records[seq - 1].stamp, mono_ns=mono_ns)
        records[seq - 1] = msgspec.structs.replace(records[seq - 1], stamp=stamp)
    return SENDER.records(records, drops)


async def test_the_table_of_what_was_refused_is_bounded(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.store.refusals.REFUSED_MAX", 3)
    for number in range(10):
        await cloud.store([Arrival("holdfast/v1/press-7/up/a", b"%d" % number)])
    assert await rows(cloud, "SELECT payload FROM refused ORDER BY id") == [
        (b"7",),
        (b"8",),
        (b"9",),
    ]


async def test_what_is_refused_often_does_not_drive_out_what_is_refused_once(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.store.refusals.REFUSED_MAX", 20)
    await cloud.store([Arrival("holdfast/v1/victim/up/a", b"evidence")])
    for _ in range(30):
        await cloud.store([Arrival("holdfast/v1/press-7/up/a", b"noise")])
    await cloud.store([Arrival("holdfast/v1/press-7/up/a", b"other")])
    found = await rows(cloud, "SELECT payload, times FROM refused ORDER BY id")
    assert found == [(b"evidence", 1), (b"noise", 30), (b"other", 1)]


async def test_a_device_has_its_share_of_what_was_refused(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.store.refusals.REFUSED_MAX", 20)
    monkeypatch.setattr("fleet.store.refusals.DEVICE_MAX", 5)
    await cloud.store([Arrival("holdfast/v1/victim/up/a", b"evidence")])
    for number in range(60):
        await cloud.store([Arrival("holdfast/v1/press-7/up/a", b"%d" % number)])
    (oldest, *others) = await rows(cloud, "SELECT device, payload FROM refused ORDER BY id")
    assert oldest == ("victim", b"evidence")
    assert 5 <= len(others) <= 5 + 2, "its share, and what may come until it is bounded again"
    assert others[-1] == ("press-7", b"59")


async def test_streams_without_end_are_refused(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STREAMS_MAX", 3)
    for epoch in range(5):
        verdict = await cloud.store([Sender(epoch=f"e{epoch}").batch([1])])
        assert verdict.refused == (epoch >= 3)
    assert (await cloud.store([Sender("other").batch([1])])).records_new == 1
    assert len((await cloud.ack(SENDER.device)).epochs) == 3


async def test_an_ack_is_bounded_and_tells_the_lowest_ranges(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cloud.store([SENDER.batch([seq]) for seq in range(2, 4002, 2)])
    ranges = (await acked(cloud)).ranges
    assert ranges == [Range(seq, seq) for seq in range(2, 2002, 2)]
    monkeypatch.setattr("fleet.store.acks.ACK_BYTES_MAX", 2000)
    word = await cloud.ack(SENDER.device)
    assert len(ack.encode(word)) <= 2000
    few = word.epochs["e1"]["a.segments"].ranges
    assert len(few) > 0 and few == ranges[: len(few)]
    for bytes_max in (1000, 1):  # what the broker takes; an ack of nothing has more than 1
        word = (await cloud.acks([SENDER.device], bytes_max))[SENDER.device]
        assert len(ack.encode(word)) <= bytes_max or word.epochs == {}


async def test_a_device_that_never_came_has_an_empty_ack(cloud: Cloud) -> None:
    assert (await cloud.ack("nobody")).epochs == {}
    assert await cloud.store([]) == Verdict()


async def test_rows_that_an_operator_removed_are_made_anew(cloud: Cloud) -> None:
    await cloud.store([SENDER.batch([1])])
    async with cloud.database.begin() as transaction:
        for table in ("records", "streams", "devices"):
            await transaction.execute(f"DELETE FROM {table}")
    await cloud.store([SENDER.batch([1, 2])])
    assert await acked(cloud) == StreamAck(2)


async def test_it_is_there_when_the_database_is_opened_again(url: str) -> None:
    for life in range(3):
        async with Cloud(database.open(url)) as cloud:
            await cloud.store([SENDER.batch([life + 1])])
            assert await acked(cloud) == StreamAck(life + 1)


async def test_a_newer_schema_is_left_alone(url: str) -> None:
    async with Cloud(database.open(url)) as cloud, cloud.database.begin() as transaction:
        if url.startswith("sqlite"):
            await transaction.execute("PRAGMA user_version = 99")
        else:
            await transaction.execute("INSERT INTO holdfast_schema VALUES (99)")
    with pytest.raises(StoreError, match="schema 99"):
        async with Cloud(database.open(url)):
            pass


async def test_two_processes_do_not_write_one_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    async with Cloud(database.open(url)) as cloud:
        await cloud.store([SENDER.batch([1])])
        with pytest.raises(StoreLocked, match="another process"):
            async with Cloud(database.open(url)):
                pass
        async with Cloud(database.open(url, reads_only=True)) as reader:
            assert await acked(reader) == StreamAck(1)


@pytest.mark.parametrize(
    "url", ["", "x", "sqlite:", "sqlite:///", "mysql://x/y", "sqlite://host/x", "postgresql://[/x"]
)
def test_a_url_that_names_no_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        database.open(url)


async def test_nothing_that_a_device_says_of_itself_breaks_the_database(cloud: Cloud) -> None:
    odd = msgspec.structs.replace(
        SENDER.heartbeat(Balance(2**70, 1, 1, {}), "a\0b"), conditions=[{"cause": "\0"}] * 5000
    )
    odd.ledger["e\0"] = {"s": Balance(1, 1, 0, {})}
    odd.ledger["e2"] = {"s": Balance(-1, 1, 0, {}), "t": Balance(3, 1, 2, {})}
    presence = msgspec.structs.replace(SENDER.presence(), version="\0" * 9999)
    await cloud.note([presence], {SENDER.device: odd})
    assert (await cloud.devices())[0].status == "a?b"
    assert await rows(cloud, "SELECT epoch, name, said_produced FROM streams") == [("e2", "t", 3)]


@pytest.mark.parametrize("seed", range(3))
async def test_damaged_messages_are_refused_and_raise_nothing(cloud: Cloud, seed: int) -> None:
    """Each with some bytes changed, cut or doubled, in header and content."""
    chance = random.Random(f"{SEED}.{seed}")
    good = [
        SENDER.batch(range(1, 20), [(30, 40, "full")], blob_bytes=3),
        SENDER.piece(1, b"abc", 0, 2),
    ]
    damaged = []
    for _ in range(100):
        one = chance.choice(good)
        payload = bytearray(one.payload)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(payload))
            way = chance.random()
            if way < 0.6:
                payload[at] = chance.randrange(256)
            elif way < 0.8:
                del payload[at : at + chance.randint(1, 30)]
            else:
                payload[at:at] = payload[:30]
        damaged.append(Arrival(one.topic, bytes(payload)))
    verdict = await cloud.store(damaged)
    assert verdict.records_new == 0 or verdict.refused < 100
    assert verdict.refused > 90


FIELDS: dict[str, list[Any]] = {
    "seq": [0, -1, 2**63, 2**70],
    "start": [-1, 5, 2**70],
    "size": [0, -1, 2, 2**70],
    "first": [0, 7],
    "last": [0, 7, 2**70],
    "count": [0, 7, -1],
    "epoch": ["", "a/b", "\0", "x" * 999],
    "stream": ["", "\0", "other"],
    "device": ["", "\0", "other"],
    "dropped": [[[0, 0, "x"]], [[1, 2, "\0"]], [[2, 1, "x"]], [[-5, 2**80, "x"]]],
}


@pytest.mark.parametrize("field", FIELDS)
async def test_headers_that_lie_are_refused(cloud: Cloud, field: str) -> None:
    """Well-formed envelopes, one field of whose header says what cannot be."""
    for arrival in (SENDER.batch([1, 2]), SENDER.piece(3, b"abc", 1, 3)):
        header, content = envelope.unseal(arrival.payload, dict[str, Any])
        for value in FIELDS[field]:
            if field in header:
                lie = msgspec.json.encode({**header, field: value})
                payload = struct.pack("!4sII", b"HF1\n", len(lie), zlib.crc32(lie)) + lie + content
                verdict = await cloud.store([Arrival(arrival.topic, payload)])
                assert (verdict.refused, verdict.records_new) == (1, 0), (field, value)


async def test_a_call_that_is_cancelled_leaves_the_database_whole(cloud: Cloud) -> None:
    """At whatever moment: what comes next goes through, and nothing is half there."""
    for turns in range(40):
        one = asyncio.create_task(cloud.store([SENDER.batch([2 * turns + 1, 2 * turns + 2])]))
        for _ in range(turns):
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
    await cloud.store([SENDER.batch(range(1, 81))])
    assert await acked(cloud) == StreamAck(80)
    assert await seqs(cloud, SENDER.device) == list(range(1, 81))
