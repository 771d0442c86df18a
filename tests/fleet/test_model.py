"""`Cloud.store` against a model of sets: random batches, told ranges and pieces, brought in any
order, again, in any grouping, by one or by several that write at once.

HOLDFAST_LONG=1 takes a thousand examples; HOLDFAST_SEED=N begins elsewhere.
"""

import asyncio
import hashlib
import itertools
import os
import random
from collections.abc import Sequence

import msgspec
from msgspec import Struct, structs

from agent.protocol.ack import StreamAck
from agent.records import Range, digest
from fleet.store import database
from fleet.store.cloud import Arrival, Cloud
from fleet.store.coverage import runs
from tests.fleet.look import content, rows
from tests.fleet.sender import Sender

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
EXAMPLES = 1000 if LONG else 25
SEQS = 24
NUMBERS = itertools.count(1)


def sound(seq: int) -> bytes:
    """A blob: every third record has one."""
    return random.Random(seq).randbytes(20 + seq) if seq % 3 == 0 else b""


def body(seq: int) -> bytes:
    return msgspec.json.encode({"n": seq, "sha256": hashlib.sha256(sound(seq)).hexdigest()})


class Known(Struct):
    """The model of one stream; `full` is what of `told` is no dead letter, or is none any more."""

    sender: Sender
    records: set[int]
    told: set[int]
    full: set[int]
    bytes: dict[int, set[int]]

    def whole(self) -> set[int]:
        return {s for s in self.records if len(self.bytes.get(s, ())) == len(sound(s))}

    def ack(self) -> StreamAck:
        there = self.whole() | self.told
        mark = next(seq for seq in itertools.count() if seq + 1 not in there)
        parts = {seq: self._ready(seq) for seq in self.bytes if seq not in self.whole()}
        above = [Range(a, b) for a, b in runs(sorted(there)) if a > mark]
        begun = {s: n for s, n in sorted(parts.items()) if n}
        dead = sorted(self.told - self.full - self.whole())
        return StreamAck(mark, above, begun, dead=[Range(a, b) for a, b in runs(dead)])

    def _ready(self, seq: int) -> int:
        return next(at for at in itertools.count() if at not in self.bytes[seq])


def arrival(chance: random.Random, known: Known) -> Arrival:
    """Something that a device sends; the model learns it."""
    sender = known.sender
    if chance.random() < 0.4:
        seq = chance.randrange(3, SEQS, 3)
        start, end = sorted(chance.sample(range(len(sound(seq)) + 1), 2))
        known.bytes.setdefault(seq, set()).update(range(start, end))
        return sender.piece(seq, sound(seq), start, end)
    first, last = sorted((chance.randrange(1, SEQS), chance.randrange(1, SEQS)))
    kept = [seq for seq in range(first, last + 1) if chance.random() < 0.8] or [first]
    drops = []
    if chance.random() < 0.3:
        a, reason = chance.randrange(1, SEQS), chance.choice(["dead", "full"])
        if reason == "full":  # of no blob: what is there of one is forgotten, so the order counts
            a -= (a - 1) % 3
        drops = [(a, a + (1 if reason == "full" else 2), reason)]
        told = set(range(a, drops[0][1] + 1))
        known.told |= told
        known.full |= told if reason == "full" else set()
    known.records |= set(kept)
    records = [sender.record(seq, len(sound(seq)), body(seq)) for seq in kept]
    before = kept[0] - 1 if chance.random() < 0.5 else 0
    return sender.records(records, drops, before=digest(body(before)) if before else None)


def groups(chance: random.Random, known: Sequence[Known]) -> list[list[Arrival]]:
    """What is brought together; some of it again."""
    sent = [arrival(chance, chance.choice(known)) for _ in range(chance.randint(1, 25))]
    sent += chance.sample(sent, chance.randint(0, len(sent)))
    chance.shuffle(sent)
    cuts = sorted(chance.sample(range(len(sent) + 1), min(len(sent), chance.randint(0, 6))))
    found = [sent[a:b] for a, b in itertools.pairwise([0, *cuts, len(sent)])]
    return [group for group in found if group]


def strangers() -> list[Known]:
    """Two streams of each of two devices that no example before has used."""
    number = next(NUMBERS)
    return [
        Known(Sender(f"{device}-{number}", stream=stream), set(), set(), set(), {})
        for device in ("a", "b")
        for stream in ("x", "y")
    ]


async def check(cloud: Cloud, known: Known) -> None:
    """Everything that can be asked of one stream."""
    sender = known.sender
    word = (await cloud.ack(sender.device)).epochs.get("e1", {}).get(sender.stream, StreamAck())
    assert structs.replace(word, tail=None) == known.ack()
    if word.tail:
        seq, said = word.tail
        assert seq <= word.mark and seq in known.records and said == digest(body(seq))
    else:
        assert word.mark not in known.records
    where = f"WHERE device = '{sender.device}' AND stream = '{sender.stream}'"
    stored = await rows(cloud, f"SELECT seq FROM events {where} ORDER BY seq")
    assert [seq for (seq,) in stored] == sorted(known.records)
    asked = f"""
        SELECT s.id, s.told, s.spans, s.unsettled, s.records FROM streams s
        JOIN devices d ON d.id = s.device
        WHERE d.name = '{sender.device}' AND s.name = '{sender.stream}'
    """
    for number, *counters in await rows(cloud, asked):
        told = f"SELECT coalesce(sum(last - first + 1), 0) FROM told WHERE stream = {number}"
        spans = f"SELECT count(*) FROM spans WHERE stream = {number}"
        open_blobs = f"SELECT count(*) FROM blobs WHERE stream = {number} AND NOT settled"
        counted = [(await rows(cloud, sql))[0][0] for sql in (told, spans, open_blobs)]
        assert counters == [*map(int, counted), len(known.records)]
        assert counted[0] == len(known.told - known.whole())
        for seq in known.whole():
            assert await content(cloud, seq, number) == sound(seq)


def test_one_after_the_other(url: str) -> None:
    async def examples() -> None:
        async with Cloud(database.open(url)) as cloud:
            for example in range(EXAMPLES):
                chance = random.Random(f"{SEED}.{example}")
                known = strangers()
                for group in groups(chance, known):
                    verdict = await cloud.store(group)
                    assert verdict.refused == 0
                for one in known:
                    try:
                        await check(cloud, one)
                    except AssertionError as error:
                        raise AssertionError(f"HOLDFAST_SEED={SEED}, example {example}") from error

    asyncio.run(examples())


def test_many_at_once(url: str) -> None:
    """Three that know nothing of each other on PostgreSQL; on SQLite, three calls of one."""

    async def examples() -> None:
        async with Cloud(database.open(url)) as first:
            if url.startswith("sqlite"):
                await at_once([first, first, first])
                return
            async with Cloud(database.open(url)) as second, Cloud(database.open(url)) as third:
                await at_once([first, second, third])

    async def at_once(clouds: list[Cloud]) -> None:
        for example in range(EXAMPLES):
            chance = random.Random(f"{SEED}.{example}.at-once")
            known = strangers()
            brought = groups(chance, known)
            verdicts = await asyncio.gather(
                *(chance.choice(clouds).store(group) for group in brought)
            )
            assert sum(v.refused for v in verdicts) == 0
            assert sum(v.records_new for v in verdicts) == sum(len(one.records) for one in known)
            for one in known:
                try:
                    await check(clouds[0], one)
                except AssertionError as error:
                    raise AssertionError(f"HOLDFAST_SEED={SEED}, example {example}") from error

    asyncio.run(examples())
