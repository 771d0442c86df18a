"""One epoch that lives twice: a device's disk was put back from a copy. A real store and a real
cloud: what either life made is in the one or in the other, and both say that something is wrong."""

import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from msgspec import structs

from agent import config
from agent.clock import Clock
from agent.errors import ProtocolError
from agent.protocol import batch
from agent.protocol.ack import StreamAck
from agent.records import Drop, Range, RecordType, digest
from agent.store.intake import New
from agent.store.outbox import Batch
from agent.store.store import Store
from agent.sync.up.parcels import cut, halves
from fleet.store import database
from fleet.store.cloud import Arrival, Cloud, Verdict
from tests.fleet.look import rows
from tests.fleet.sender import Sender
from tests.fleet.test_gaps import fleet

ROOM = 1 << 20
SENDER = Sender()


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as opened:
        yield opened


class Life:
    """A device from one start to its end, and the far side."""

    def __init__(self, folder: Path, cloud: Cloud) -> None:
        self.store = Store(config.Store(path=str(folder / "s.db")), Clock())
        self.cloud = cloud

    async def make(self, life: int, count: int) -> None:
        bodies = [b'{"life":%d,"n":%d}' % (life, n) for n in range(count)]
        await self.store.intake.append("a", [New(RecordType.SEGMENT, body) for body in bodies])

    async def send(self) -> Verdict:
        """All that waits, in one batch."""
        leased = await self.store.outbox.lease(100, ROOM)
        assert leased is not None
        return await self.cloud.store([arrival(leased)])

    async def send_alone(self, seq: int) -> Verdict:
        """As a live record goes: before those that are older."""
        span = Range(seq, seq)
        leased = await self.store.outbox.lease_span((self.store.epoch, "a"), span, 1, ROOM)
        assert leased is not None
        return await self.cloud.store([arrival(leased)])

    async def word(self) -> StreamAck:
        return (await self.cloud.ack("dev")).epochs[self.store.epoch]["a"]

    async def hear(self, word: StreamAck) -> int:
        """How many records left."""
        known = [Range(1, word.mark), *word.ranges]
        name = self.store.epoch, "a"
        tail = word.tail
        return (await self.store.outbox.acknowledge(name, known, word.dead, tail=tail)).delivered

    async def refuses(self) -> None:
        """The far side's word: nothing leaves by it."""
        before = await self.store.ledger.balances()
        with pytest.raises(ProtocolError, match="another record is stored") as caught:
            await self.hear(await self.word())
        assert "device_id" in caught.value.hint
        assert await self.store.ledger.balances() == before


def arrival(leased: Batch) -> Arrival:
    of = leased.records, leased.drops
    payload = batch.encode("dev", *leased.name, *of, live=leased.live, before=leased.before)
    return Arrival("holdfast/v1/dev/up/a", payload)


@pytest.fixture
async def second(tmp_path: Path, cloud: Cloud) -> AsyncIterator[Life]:
    """A copy was made when #1-3 were delivered; #4-8 of the first life, too; then it was put back,
    and #4-11 were made once more."""
    first = Life(tmp_path, cloud)
    async with first.store:
        await first.make(0, 3)
        await first.send()
        assert await first.hear(await first.word()) == 3
    files = list(tmp_path.glob("s.db*"))
    (tmp_path / "copy").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "copy")
    async with first.store:
        await first.make(1, 5)
        await first.send()
        assert await first.hear(await first.word()) == 5
    for file in tmp_path.glob("s.db*"):
        file.unlink()
    for file in (tmp_path / "copy").iterdir():
        shutil.copy(file, tmp_path)
    life = Life(tmp_path, cloud)
    async with life.store:
        await life.make(2, 8)
        yield life


async def stored(cloud: Cloud) -> list[str]:
    """The bodies, by seq."""
    return [body for (body,) in await rows(cloud, "SELECT body FROM events ORDER BY seq")]


def bodies(life: int, numbers: Iterable[int]) -> list[str]:
    return [f'{{"life":{life},"n":{n}}}' for n in numbers]


async def test_an_ack_of_the_former_life_purges_nothing(second: Life) -> None:
    await second.refuses()
    assert (await second.store.ledger.balances())["a"].held == 8


async def test_what_contradicts_is_stored_no_part_of(second: Life, cloud: Cloud, url: str) -> None:
    verdict = await second.send()
    assert (verdict.records_new, verdict.refused) == (0, 1)
    await second.refuses()
    assert await stored(cloud) == [*bodies(0, range(3)), *bodies(1, range(5))]
    assert (await second.word()).refused == [], "else the device would bury them"
    (found,) = (await cloud.gaps("dev")).conflicts
    assert (found.stream, found.first, found.last, found.batches) == ("a", 4, 11, 1)
    second.store.outbox.rewind()
    await second.send()
    assert [one.batches for one in (await cloud.gaps()).conflicts] == [1], "the same once more"
    await cloud.store([Sender("another").batch([1])])
    assert (await cloud.gaps("another")).conflicts == []
    said = fleet("gaps", "--database", url)
    assert (said.returncode, "given out twice" in said.stdout) == (6, True)
    assert '"conflicts":[{"device":"dev"' in fleet("gaps", "--database", url, "--json").stdout


async def test_live_records_that_go_first_are_not_joined_to_the_former_life(
    second: Life, cloud: Cloud
) -> None:
    """Else the mark would pass from the one life to the other, and all below it leave unsent."""
    assert (await second.send_alone(9)).refused == 1
    assert [(await second.send_alone(seq)).records_new for seq in (10, 11)] == [1, 1]
    assert (await second.word()).mark == 8
    await second.refuses()
    verdict = await second.send()
    assert (verdict.records_new, verdict.refused) == (0, 1)
    await second.refuses()
    assert (await second.store.ledger.balances())["a"].held == 8
    assert await stored(cloud) == [
        *(*bodies(0, range(3)), *bodies(1, range(5)), *bodies(2, [6, 7])),
    ]


async def test_a_device_that_says_nothing_of_it_and_an_ingest_likewise_go_on(
    tmp_path: Path, cloud: Cloud
) -> None:
    life = Life(tmp_path, cloud)
    async with life.store:
        await life.make(0, 4)
        leased = await life.store.outbox.lease(2, ROOM)
        await cloud.store([arrival(leased)])
        leased = await life.store.outbox.lease(2, ROOM)
        assert leased is not None and leased.before == digest(b'{"life":0,"n":1}')
        verdict = await cloud.store([arrival(structs.replace(leased, before=None))])
        assert (verdict.records_new, verdict.refused) == (2, 0)
        word = await life.word()
        assert word.tail == (4, digest(b'{"life":0,"n":3}'))
        assert await life.hear(structs.replace(word, tail=None)) == 4


async def test_what_the_disk_has_damaged_is_no_contradiction(tmp_path: Path, cloud: Cloud) -> None:
    life = Life(tmp_path, cloud)
    async with life.store:
        await life.make(0, 2)
        await life.send()
        damage = "UPDATE records SET body = CAST('{}' AS BLOB)"
        await life.store._database.write(lambda connection: connection.execute(damage).rowcount)
        assert await life.hear(await life.word()) == 2


async def test_two_lives_in_one_transaction_are_two(cloud: Cloud) -> None:
    other = SENDER.record(3, body=b'{"n":"another"}')
    verdict = await cloud.store(
        [
            SENDER.batch([1, 2, 3]),
            SENDER.records([other, SENDER.record(4)], [(5, 6, "full")]),
            SENDER.records([SENDER.record(4)], before=digest(other.body)),
            SENDER.records([SENDER.record(4)], before=digest(SENDER.record(3).body)),
        ]
    )
    assert (verdict.records_new, verdict.refused) == (4, 2)
    (word,) = (await cloud.ack(SENDER.device)).epochs["e1"].values()
    assert word == StreamAck(4, tail=(4, digest(SENDER.record(4).body)))


async def test_an_ack_has_the_digest_of_the_highest_record_up_to_its_mark(cloud: Cloud) -> None:
    async def tail() -> tuple[int, tuple[int, int] | None]:
        (word,) = (await cloud.ack(SENDER.device)).epochs["e1"].values()
        return word.mark, word.tail

    await cloud.store([SENDER.batch([], [(1, 1, "full")])])
    assert await tail() == (1, None)
    await cloud.store([SENDER.batch([2, 3], [(4, 4, "full")])])
    third = 3, digest(SENDER.record(3).body)
    assert await tail() == (4, third)
    await cloud.store([SENDER.batch([], [(5, 5, "full")])])
    assert await tail() == (5, third)
    await rows(cloud, "UPDATE streams SET mark = 9 RETURNING mark")  # an ingest of before does so
    assert await tail() == (9, third)
    await cloud.store([SENDER.batch([10])])
    assert await tail() == (10, (10, digest(SENDER.record(10).body)))


async def test_a_mark_beyond_the_last_record_answers_for_no_other_life(
    second: Life, cloud: Cloud
) -> None:
    """Its highest record is another's."""
    drops = [Drop(9, 11, "full")]
    payload = batch.encode("dev", second.store.epoch, "a", [], drops)
    await cloud.store([Arrival("holdfast/v1/dev/up/a", payload)])
    assert (await second.word()).mark == 11
    await second.refuses()


async def test_each_part_of_a_lease_names_the_record_before_it(
    tmp_path: Path, cloud: Cloud
) -> None:
    life = Life(tmp_path, cloud)
    async with life.store:
        await life.make(0, 9)
        assert await life.store.outbox.lease(1, ROOM)
        leased = await life.store.outbox.lease(8, ROOM)
        assert leased is not None
        (whole,) = cut(leased)
        parts = [part for half in halves(whole) for part in halves(half)]
        befores = [digest(b'{"life":0,"n":%d}' % n) for n in (0, 2, 4, 6)]
        assert [part.before for part in parts] == befores
        apart = structs.replace(whole, records=[*whole.records[:2], *whole.records[3:5]])
        assert [part.before for part in halves(apart)] == [befores[0], None]
