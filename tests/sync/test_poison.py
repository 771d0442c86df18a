"""A record that does not get through is found and kept; a bad network makes none such.

Replay a seed with HOLDFAST_SEED=n; HOLDFAST_LONG=1 takes longer.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.protocol import batch
from agent.records import Range, RecordType
from agent.store import streams
from agent.store.outbox import Settled
from agent.sync.up.tries import SUSPECTS_MAX, Tries
from tests.e2e.judge import Judge
from tests.outside import Mosquitto, running
from tests.sync.rig import Rig, emptied, eventually, linked
from tests.sync.scripted import Fate, Scripted

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
QUICK = {"ack_timeout_s": 0.3, "tries_max": 2, "backoff_s_min": 0.02, "backoff_s_max": 0.05}
POISON = b'{"poison":1}'
Judging = Callable[[batch.Header, list[batch.Event]], Fate]
STREAM = "x.segments"


def poisonous(fate: Fate) -> Judging:
    def judge(_: batch.Header, events: list[batch.Event]) -> Fate:
        return fate if any(bytes(event.data) == POISON for event in events) else "take"

    return judge


async def add(rig: Rig, *bodies: bytes, stream: str = STREAM, age_s: float = 0.0) -> None:
    """Records of these bodies, made so long ago."""

    def operation(connection: object) -> None:
        key = streams.stream_id(connection, stream)
        now = rig.clock.stamp()
        stamp = type(now)(now.boot, now.mono_ns - int(age_s * 1e9), now.wall_us)
        for body in bodies:
            streams.append(connection, key, RecordType.SEGMENT, stamp, body)

    await rig.store._database.write(operation)
    rig.store.outbox.more.set()


@asynccontextmanager
async def trickle(rig: Rig) -> AsyncIterator[None]:
    """One good record after the other, as long as this lasts."""

    async def run() -> None:
        while True:
            await add(rig, b"{}")
            await asyncio.sleep(0.05)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def dead(rig: Rig, stream: str = STREAM) -> str:
    found = [c for c in rig.conditions.all() if c.name == "dead_letters" and c.subject == stream]
    return found[0].cause if found else ""


@pytest.mark.parametrize("fate", ["kill", "refuse", "swallow"])
async def test_one_poison_record_is_found_and_kept_and_all_others_get_through(
    tmp_path: Path, fate: Fate
) -> None:
    async with Scripted(poisonous(fate)) as broker:
        rig = Rig(tmp_path, broker.url, **QUICK)
        async with rig.store:
            await add(rig, *[b"{}"] * 16, POISON, *[b"{}"] * 23)
        async with linked(Rig(tmp_path, broker.url, **QUICK)) as rig:
            async with trickle(rig):
                await eventually(lambda: dead(rig), "it is a dead letter")
                assert "#17: " in dead(rig)
            copy = broker.copy()
            others = {*range(1, 17), *range(18, 41)}
            await eventually(lambda: others <= set(copy.records), "the others are there")
            await eventually(lambda: copy.word().mark > 40, "the far side knows that it is dead")
            assert copy.told == {17: "dead"}
            await eventually(lambda: not rig.holds("held_back"), "nothing is held back any more")
            connects = broker.connects
            last = max(copy.records)
            await add(rig, *[b"{}"] * 20)
            await eventually(lambda: last + 20 in copy.records, "and it goes on")
            assert broker.connects == connects, "the link is at rest"


@pytest.mark.parametrize("fate", ["kill", "refuse", "swallow", "reject"])
async def test_a_dead_letter_that_is_retried_dies_again_or_is_delivered(
    tmp_path: Path, fate: Fate
) -> None:
    """The far side goes on to say that it is dead, until it has stored it."""
    alone = {"batch_records_max": 1} if fate == "reject" else {}  # a batch is refused whole
    async with (
        Scripted(poisonous(fate)) as broker,
        linked(Rig(tmp_path, broker.url, **QUICK, **alone)) as rig,
    ):
        name = (rig.store.epoch, STREAM)
        async with trickle(rig):
            await add(rig, POISON)
            for _ in range(2):
                await eventually(lambda: dead(rig), "it is a dead letter")
                await eventually(lambda: broker.copy().dead(), "the far side knows")
                (letter,) = broker.copy().dead()
                assert (await rig.store.decisions.retry(name)).sending == 1
                rig.store.outbox.more_buried.set()  # look
                await eventually(lambda: not dead(rig), "it is sent again")
            await eventually(lambda: dead(rig), "it is a dead letter again")
            assert letter.first not in broker.copy().records
            broker.fate = lambda *_: "take"
            assert (await rig.store.decisions.retry(name)).sending == 1
            await eventually(lambda: letter.first in broker.copy().records, "it is stored")
            assert broker.copy().dead() == []
        await emptied(rig)
        await eventually(lambda: not rig.holds("dead_letters"), "nobody speaks of it")


async def test_an_ack_that_was_on_its_way_does_not_answer_for_a_dead_letter_sent_again(
    tmp_path: Path,
) -> None:
    """The ack is being written while the letter goes out; it says of it no more than before."""
    async with (
        Scripted(poisonous("swallow")) as broker,
        linked(Rig(tmp_path, broker.url, **QUICK)) as rig,
    ):
        name = (rig.store.epoch, STREAM)
        acknowledge, waits = rig.store.outbox.acknowledge, rig.uplink._waits
        late = 0

        async def slowly(*given: Any, **named: Any) -> Settled:
            nonlocal late
            if retried and not late and rig.holds("held_back") and not alone():
                await eventually(alone, "it is sent again, alone")
                late += 1
            return await acknowledge(*given, **named)

        def alone() -> bool:
            return any(out.parcel.alone for out in waits.of(name))

        retried = False
        rig.store.outbox.acknowledge = slowly  # type: ignore[method-assign]
        async with trickle(rig):
            await add(rig, POISON)
            await eventually(lambda: dead(rig), "it is a dead letter")
            await eventually(lambda: broker.copy().dead(), "the far side knows")
            retried = True
            await rig.store.decisions.retry(name)
            rig.store.outbox.more_buried.set()
            await eventually(lambda: late, "an ack was late")
            await eventually(lambda: dead(rig), "it is a dead letter again")


async def test_a_dead_letter_of_which_acks_do_not_speak_is_sent_again_once_and_waits(
    tmp_path: Path,
) -> None:
    """They have no room for it; others get through, and no ack of those answers it."""
    async with Scripted(lambda *_: "take") as broker:
        rig = Rig(tmp_path, broker.url)
        async with rig.store:
            name, copy = (rig.store.epoch, STREAM), broker.copies[rig.store.epoch, STREAM]
            await add(rig, *[b"{}"] * 5)
            await rig.store.outbox.bury(name, 3, "poison")
        async with linked(Rig(tmp_path, broker.url, ack_timeout_s=60)) as rig:
            waits = rig.uplink._waits
            await eventually(lambda: copy.word().mark == 5 and not waits.of(name), "it is told")
            copy.silent = 3
            await rig.store.decisions.retry(name)
            await eventually(lambda: 3 in copy.records, "it is stored")
            for seq in range(6, 16):
                await add(rig, b"{}")
                await eventually(lambda seq=seq: seq in copy.records, "another gets through")
                await eventually(lambda: len(waits.of(name)) == 1, "and is answered")
                assert waits.of(name)[0].parcel.span == Range(3, 3), "the letter is not"
            assert copy.times[3] == 1
            copy.silent = 0
            await add(rig, b"{}")
            await emptied(rig)
            assert copy.times[3] == 1


async def test_a_topic_that_is_refused_makes_no_dead_letters(tmp_path: Path) -> None:
    """Others get through, but not one of that stream: it is not the records' fault."""

    def judge(header: batch.Header, _: list[batch.Event]) -> Fate:
        return "kill" if header.stream == "y.segments" and closed else "take"

    closed = True
    async with Scripted(judge) as broker, linked(Rig(tmp_path, broker.url, **QUICK)) as rig:
        await add(rig, *[b"{}"] * 5, stream="y.segments")
        async with trickle(rig):
            await eventually(lambda: rig.holds("held_back"), "it is held back")
            await eventually(lambda: broker.kills >= 12, "and tried again and again")
            assert not dead(rig, "y.segments")
            closed = False
            await eventually(lambda: broker.copy("y.segments").word().mark == 5, "all is there")


async def test_what_the_ingest_refuses_is_dead_at_once(tmp_path: Path) -> None:
    async with (
        Scripted(poisonous("reject")) as broker,
        linked(Rig(tmp_path, broker.url, **QUICK, batch_records_max=1)) as rig,
    ):
        await add(rig, b"{}", POISON, b"{}")
        await eventually(lambda: "refused by the ingest" in dead(rig), "it is a dead letter")
        assert "#2: " in dead(rig)
        await add(rig, b"{}")
        await eventually(lambda: broker.copy().word().mark == 4, "all others are there")
        assert broker.connects == 1


async def test_a_record_above_the_limit_is_dead_at_once_and_says_why(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, extra="max_packet_size 20000\n")
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    huge = b'{"x":"%s"}' % random.Random(1).randbytes(40_000).hex().encode()
    with running(broker, judge):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await add(rig, *[b"{}"] * 5, huge, *[b"{}"] * 5)
            await eventually(lambda: dead(rig), "it is a dead letter")
            assert "#6: " in dead(rig)
            assert "18976 are the limit" in dead(rig)
            assert "link.payload_bytes_max" in dead(rig)
            await eventually(lambda: len(judge.seqs(STREAM)) == 10, "the others are there")
            assert not rig.holds("link_down")


async def test_a_batch_above_the_limit_is_divided(tmp_path: Path) -> None:
    """What compresses less than all before makes a batch that is too large."""
    chance = random.Random(SEED)
    async with (
        Scripted(lambda *_: "take") as broker,
        linked(Rig(tmp_path, broker.url, payload_bytes_max=8192)) as rig,
    ):
        await add(rig, *[b'{"x":"%s"}' % (b"0" * 3000)] * 200)
        await eventually(lambda: broker.copy().word().mark == 200, "the first are there")
        bodies = [b'{"x":"%s"}' % chance.randbytes(2000).hex().encode() for _ in range(50)]
        await add(rig, *bodies)
        await eventually(lambda: broker.copy().word().mark == 250, "all are there")
        assert not dead(rig)


async def test_a_link_that_dies_hundreds_of_times_makes_no_dead_letter(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    deaths = 2000 if LONG else 200
    async with Scripted(lambda *_: "take") as broker:
        broker.lives = lambda: chance.expovariate(1 / 0.03) if broker.kills < deaths else None
        settings = {**QUICK, "backoff_s_min": 0.01, "backoff_s_max": 0.01}
        async with linked(Rig(tmp_path, broker.url, **settings)) as rig:
            rig.uplink._ratio.value = 1.0  # small batches: many are in flight
            begun = rig.clock.monotonic()
            while broker.kills < deaths:
                assert rig.clock.monotonic() - begun < deaths, "it connects no more"
                await add(rig, *[b"{}"] * 20)
                await asyncio.sleep(0.02)
                assert not dead(rig)
            produced = (await rig.store.ledger.balances())[STREAM].produced
            await eventually(lambda: broker.copy().word().mark == produced, "all is there")
            assert not dead(rig)
            await eventually(lambda: not rig.holds("held_back"), "nothing is held back any more")


# Of the rules alone, in simulated time.

NAME = ("e", STREAM)
PATIENCE_S = 30.0


class Network:
    """Sends numbered parcels, a few at a time, over a link that ends at random; some are poison."""

    def __init__(self, seed: int, life_s: float, poison: set[int] = frozenset()) -> None:
        self.tries = Tries(5, PATIENCE_S)
        self.now = 0.0
        self.deaths = 0
        self.dead: list[int] = []
        self.got: set[int] = set()
        self._chance = random.Random(seed)
        self._life_s = life_s
        self._poison = poison
        self._next = 1
        self._again: list[int] = []

    def run(self, deaths: int) -> None:
        while self.deaths < deaths:
            self._connection()
            self.now += self._chance.uniform(4, 8)
            self.deaths += 1
            self.tries.ended()

    def _connection(self) -> None:
        up_at, ends_at = self.now, self.now + self._chance.expovariate(1 / self._life_s)
        while True:
            suspect = self.tries.due(self.now, self.now - up_at)
            sent = [suspect.span.first] if suspect else self._some()
            begun, self.now = self.now, self.now + self._chance.uniform(0.6, 3.0)
            bad = self._poison & set(sent)
            if not bad and self.now < ends_at:
                self._through(sent)
                continue
            self.now = min(self.now, ends_at) if not bad else begun + 0.6
            if suspect:
                times = begun - up_at, self.now - begun
                if self.tries.alone_broke(suspect, *times, single=True, now=self.now) == "dead":
                    self.dead.append(suspect.span.first)
                    self.tries.forget(suspect)
                return
            spans = [(NAME, Range(seq, seq)) for seq in sent]
            held = set(self.tries.broke(spans, "it ended", self.now))
            self._again += [seq for number, seq in enumerate(sent) if number not in held]
            return

    def _some(self) -> list[int]:
        found, self._again = self._again[:8], self._again[8:]
        while len(found) < 8:
            found.append(self._next)
            self._next += 1
        return found

    def _through(self, seqs: list[int]) -> None:
        self.got |= set(seqs)
        left = lambda span: [] if span.first in self.got else [span]  # noqa: E731
        self.tries.through(NAME, left, [Range(seq, seq) for seq in seqs], self.now)


@pytest.mark.parametrize("life_s", [0.5, 2.0, 10.0, 60.0, 600.0])
@pytest.mark.parametrize("seed", range(SEED, SEED + (50 if LONG else 2)))
def test_no_network_makes_a_dead_letter(seed: int, life_s: float) -> None:
    network = Network(seed, life_s)
    network.run(3000 if life_s < 20 else 300)
    assert network.dead == []


@pytest.mark.parametrize("seed", range(SEED, SEED + (50 if LONG else 2)))
def test_poison_is_found_on_a_network_that_is_not_good_either(seed: int) -> None:
    network = Network(seed, 600.0, {5, 77, 78})
    network.run(200)
    assert sorted(network.dead) == [5, 77, 78]
    assert set(range(1, 77)) - {5} <= network.got


def test_an_end_without_the_suspect_begins_its_count_anew() -> None:
    tries, now = Tries(2, PATIENCE_S), 0.0
    span, other, left = Range(1, 1), Range(2, 2), lambda span: [span]

    def alone() -> str:
        nonlocal now
        now += 1000.0
        tries.through(NAME, left, [other], now)
        (suspect,) = tries.suspects
        return tries.alone_broke(suspect, 900.0, 1.0, single=True, now=now)

    assert [tries.broke([(NAME, span)], "why", now) for _ in range(2)] == [[], [0]]
    assert alone() == "again"
    tries.broke([], "why", now)
    assert alone() == "again"
    assert alone() == "dead"


def test_suspects_are_bounded() -> None:
    tries = Tries(2, PATIENCE_S)
    for seq in range(1, 1001):
        for _ in range(3):
            tries.failed(NAME, Range(seq, seq), "why", 0.0)
    assert len(tries.suspects) == SUSPECTS_MAX
