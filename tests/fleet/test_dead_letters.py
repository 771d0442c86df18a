"""A real store and a real cloud: no dead letter counts as delivered unless it is stored there.

Batches come late, again and in any order, acks too; lists of dead letters are cut short. Replay a
seed with HOLDFAST_SEED=n; HOLDFAST_LONG=1 takes more of them.
"""

import asyncio
import os
import random
import sqlite3
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.protocol import batch
from agent.protocol.ack import StreamAck
from agent.records import Range, RecordType
from agent.store.intake import New
from agent.store.outbox import Batch
from agent.store.store import Store
from fleet.store import acks, database
from fleet.store.cloud import Arrival, Cloud

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
STEPS = 150
TOPIC = "holdfast/v1/dev/up/a"


class Both:
    """A device, a cloud, and what is under way between them."""

    def __init__(self, store: Store, cloud: Cloud, copy: Path, chance: random.Random) -> None:
        self.store, self.cloud, self.copy, self.chance = store, cloud, copy, chance
        self.name = (store.epoch, "a")
        self.out: list[Batch] = []
        self.wire: list[Arrival] = []
        self.acks: list[StreamAck] = []

    async def append(self) -> None:
        await self.store.intake.append(
            "a", [New(RecordType.SEGMENT, self.body()) for _ in range(self.chance.randint(1, 6))]
        )

    def body(self) -> bytes:
        """Each another."""
        return b'{"n":%d}' % self.chance.getrandbits(40)

    async def lease(self) -> None:
        """What is leased may be sent, or lost with the connection."""
        if leased := await self.store.outbox.lease(self.chance.choice([1, 3, 50]), 1 << 20):
            self.out.append(leased)
            payload = batch.encode(
                "dev", *leased.name, leased.records, leased.drops, before=leased.before
            )
            self.wire.append(Arrival(TOPIC, payload))

    async def arrive(self) -> None:
        if self.wire:
            one = self.chance.choice(self.wire)
            if self.chance.random() < 0.7:  # else it comes again, or is refused now
                self.wire.remove(one)
            if self.chance.random() < 0.7:
                await self.cloud.store([one])

    async def say(self) -> None:
        word = (await self.cloud.ack("dev")).epochs.get(self.store.epoch, {})
        self.acks += word.values()

    async def hear(self) -> None:
        """The newest ack, or any that came before."""
        if self.acks:
            old = self.chance.random() < 0.3
            word = self.chance.choice(self.acks) if old else self.acks[-1]
            await self.take(word)

    async def take(self, word: StreamAck) -> None:
        dead = {seq for one in word.dead for seq in range(one.first, one.last + 1)}
        sending = {record.seq for one in self.out for record in one.records} & dead
        known = [*([Range(1, word.mark)] if word.mark else []), *word.ranges]
        tail, letters = word.tail, self.store.outbox.again(self.name)
        await self.store.outbox.acknowledge(self.name, known, word.dead, lambda: sending, tail=tail)
        unheard = {seq for seq in letters if not any(r.first <= seq <= r.last for r in known)}
        assert unheard <= self.store.outbox.again(self.name), "a letter is not heard of, and is out"

    async def bury(self) -> None:
        """What was under way is lost, perhaps: such a record ends the connection."""
        if self.chance.random() < 0.7:
            self.wire.clear()
        if seqs := [record.seq for one in self.out for record in one.records]:
            await self.store.outbox.bury(self.name, self.chance.choice(seqs), "poison")

    async def retry(self) -> None:
        if buried := await self.store.outbox.buried():
            await self.store.decisions.retry(self.name, [buried[0].last])
            await self.lease()

    async def reconnect(self) -> None:
        self.store.outbox.rewind()
        self.out.clear()

    async def send(self, rounds: int = 100) -> int:
        """What is leased is stored, until all of it is acknowledged; how many acks that took."""
        while leased := await self.store.outbox.lease(60, 1 << 20):
            payload = batch.encode("dev", *leased.name, leased.records, leased.drops)
            await self.cloud.store([Arrival(TOPIC, payload)])
        for count in range(1, rounds + 1):
            await self.say()
            await self.take(self.acks[-1])
            if not self.store.outbox.waits(self.name):
                return count
        raise AssertionError("something is out for ever")

    def stored(self) -> set[int]:
        with sqlite3.connect(self.copy) as db:
            found = {seq for (seq,) in db.execute("SELECT seq FROM records")}
        db.close()
        return found

    async def judge(self) -> set[int]:
        """The held seqs; each other is stored."""
        held = await self.store._database.read(
            lambda c: {seq for (seq,) in c.execute("SELECT seq FROM records").fetchall()}
        )
        produced = (await self.store.ledger.balances())["a"].produced
        missing = set(range(1, produced + 1)) - held - self.stored()
        assert not missing, f"delivered, and not stored: {missing}"
        return held

    async def end(self) -> None:
        """All that is dead is tried again, and nothing is lost any more."""
        await self.store.decisions.retry(self.name)
        for _ in range(1000):
            await self.reconnect()
            self.wire.clear()
            await self.append()  # dropped ranges at the end wait for a record
            while leased := await self.store.outbox.lease(50, 1 << 20):
                self.out.append(leased)
                payload = batch.encode(
                    "dev", *leased.name, leased.records, leased.drops, before=leased.before
                )
                await self.cloud.store([Arrival(TOPIC, payload)])
            await self.say()
            await self.take(self.acks[-1])
            if not await self.judge():
                return
        raise AssertionError("something is held for ever")


@pytest.mark.parametrize("seed", range(SEED, SEED + (200 if LONG else 8)))
async def test_a_dead_letter_is_delivered_only_if_it_is_stored(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, copy = random.Random(seed), tmp_path / "fleet.db"
    monkeypatch.setattr(acks, "DEAD_MAX", chance.choice([1, 1, 2, 3]))
    monkeypatch.setattr(acks, "RANGES_MAX", chance.choice([1, 2, 1000]))
    cloud = Cloud(database.open(f"sqlite:///{copy}"), chance=random.Random(seed))
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as store, cloud:
        both = Both(store, cloud, copy, chance)
        await both.append()
        steps = [both.append, both.arrive, both.say, both.hear, both.bury, both.reconnect]
        steps += [both.lease, both.arrive, both.say, both.hear, both.bury, both.retry, both.lease]
        for _ in range(STEPS):
            await chance.choice(steps)()
            await both.judge()
        await both.end()
        assert await store.ledger.faults() == []


async def test_thousands_of_dead_letters_apart_hold_up_nothing(url: str, tmp_path: Path) -> None:
    """Three times as many as an ack lists; told, acknowledged page by page, retried, stored."""
    chance = random.Random(SEED)
    cloud = Cloud(database.open(url), chance=chance)
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as store, cloud:
        both = Both(store, cloud, tmp_path / "none", chance)
        await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")] * 6000)
        dead = list(range(1, 6001, 2))
        await asyncio.gather(*(store.outbox.bury(both.name, seq, "poison") for seq in dead))
        await both.send()
        balance = (await store.ledger.balances())["a"]
        assert (balance.delivered, balance.held) == (3000, 3000), "in the first rounds of acks"
        assert await store.outbox.lease(50, 1 << 20) is None, "nothing is sent again"

        await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")] * 10)
        assert await both.send(rounds=1) == 1, "what is new is acknowledged at once"
        assert (await store.ledger.balances())["a"].delivered == 3010

        await store.decisions.retry(both.name, dead[:5] + dead[1500:1505])
        await both.send()
        balance = (await store.ledger.balances())["a"]
        assert (balance.delivered, balance.held) == (3020, 2990)
        assert await store.outbox.lease(50, 1 << 20) is None
        assert await store.ledger.faults() == []
