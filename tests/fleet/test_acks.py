"""Acks that have no room for all there is: what they leave out is told by later ones."""

import os
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from agent.protocol import ack
from agent.protocol.ack import StreamAck
from agent.records import Range
from fleet.store import acks, database
from fleet.store.cloud import Cloud
from tests.fleet.sender import Sender

SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
SENDER = Sender()
END = 300  # the odd ones are dead


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url), chance=random.Random(SEED)) as opened:
        yield opened


async def acked(cloud: Cloud) -> StreamAck:
    """Without the digest of the record at the mark, of which test_lives.py speaks."""
    word = (await cloud.ack(SENDER.device)).epochs["e1"]["a.segments"]
    return msgspec.structs.replace(word, tail=None)


def seqs(*spans: Range) -> set[int]:
    return {seq for span in spans for seq in range(span.first, min(span.last, END) + 1)}


@pytest.mark.parametrize("bytes_max", [acks.ACK_BYTES_MAX, 1000, 500, 200])
async def test_each_dead_letter_is_listed_some_time_and_none_counts_as_stored(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, bytes_max: int
) -> None:
    monkeypatch.setattr(acks, "DEAD_MAX", 40)
    monkeypatch.setattr(acks, "ACK_BYTES_MAX", bytes_max)
    dead = set(range(1, END, 2))
    for first in range(1, END, 100):
        told = [(seq, seq, "dead") for seq in range(first, first + 100, 2)]
        await cloud.store([SENDER.batch(range(first + 1, first + 100, 2), told)])
    left = set(range(1, END + 1))
    for _ in range(100 * END):
        word = await cloud.ack(SENDER.device)
        assert len(ack.encode(word)) <= bytes_max
        one = word.epochs["e1"]["a.segments"]
        known, listed = seqs(Range(1, one.mark), *one.ranges), seqs(*one.listed)
        assert known == listed and seqs(*one.dead) == dead & listed
        assert one.listed[-1].last == acks.SEQ_MAX and END in listed, "what is new is told"
        left -= listed
        if not left:
            return
    raise AssertionError(f"{len(left)} seqs are never told")


async def test_with_room_for_all_an_ack_speaks_of_all(cloud: Cloud) -> None:
    await cloud.store([SENDER.batch([2, 4], [(1, 1, "dead"), (3, 3, "dead"), (7, 8, "dead")])])
    dead = [Range(1, 1), Range(3, 3), Range(7, 8)]
    assert await acked(cloud) == StreamAck(4, [Range(7, 8)], dead=dead)


async def test_blobs_that_were_begun_and_given_up_take_no_room(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "PARTS_MAX", 3)
    sound = b"x" * 100
    await cloud.store([SENDER.piece(seq, sound, 0, 10) for seq in range(1, 9)])
    assert (await acked(cloud)).parts == {1: 10, 2: 10, 3: 10}
    await cloud.store([SENDER.batch([], [(1, 2, "dead")])])
    assert (await acked(cloud)).parts == {3: 10, 4: 10, 5: 10}, "those that are missing come first"
    late = SENDER.piece(6, sound, 10, 20)
    await cloud.store([late, SENDER.batch([9], [(3, 6, "evicted")])])
    assert await acked(cloud) == StreamAck(
        6, [Range(9, 9)], {7: 10, 8: 10, 1: 10}, dead=[Range(1, 2)]
    ), "a dead letter goes on where it stopped, if it is sent again"
    await cloud.store([SENDER.batch([], [(2, 2, "operator"), (7, 7, "evicted")])])
    await cloud.store([SENDER.piece(10, sound, 0, 90), SENDER.batch([8], blob_bytes=100)])
    assert (await acked(cloud)).parts == {8: 10, 10: 90, 1: 10}
    assert (await cloud.devices())[0].unfinished == 3
    async with cloud.database.begin() as transaction:
        there = await transaction.fetch("SELECT DISTINCT seq FROM pieces ORDER BY seq")
    assert [tuple(row) for row in there] == [(1,), (8,), (10,)]

    again = SENDER.records([SENDER.record(5, 100)])
    await cloud.store([SENDER.piece(5, sound, 0, 100), again])
    assert (await cloud.store([again])).records_known == 1, "one that comes after all is stored"
    assert (await cloud.devices())[0].unfinished == 3


async def test_a_record_whose_blob_never_came_is_not_forgotten_when_it_is_dropped(
    cloud: Cloud,
) -> None:
    await cloud.store([SENDER.piece(1, b"x" * 100, 0, 10), SENDER.batch([1], blob_bytes=100)])
    await cloud.store([SENDER.batch([2], [(1, 1, "evicted")])])
    verdict = await cloud.store([SENDER.batch([1], blob_bytes=100)])
    assert (verdict.records_new, verdict.records_known, verdict.refused) == (0, 1, 0)


async def test_no_more_is_looked_up_than_there_is_room_for(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of many streams with many gaps would cost seconds for each of its acks."""
    monkeypatch.setattr(acks, "ACK_BYTES_MAX", 6000)
    loud = [Sender("loud", stream=f"s{n}") for n in range(50)]
    await cloud.store([one.batch(range(2, 2 + 2 * 100, 2)) for one in [*loud, SENDER]])
    asked: list[tuple[int, int]] = []
    pairs = acks._pairs

    async def counting(given: Any, sql: str, streams: list[int], count: int) -> Any:
        found = await pairs(given, sql, streams, count)
        asked.append((len(streams), sum(map(len, found.values()))))
        return found

    monkeypatch.setattr(acks, "_pairs", counting)
    word = await cloud.acks(["loud", SENDER.device])
    assert len(word[SENDER.device].epochs["e1"]["a.segments"].ranges) == 100, "one has all its room"
    assert min(len(of.ranges) for of in word["loud"].epochs["e1"].values()) > 1
    assert sum(rows for _, rows in asked) < 100 + 50 * 30
