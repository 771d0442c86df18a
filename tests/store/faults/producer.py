"""A process that fills a store, at random by seed, and says what it was promised, until killed.

    python -m tests.store.faults.producer FOLDER SEED
        [--synchronous NORMAL] [--kill POINT:TIMES] [--offline FILE] [--evict]

It holds a few megabytes and drains them; while FILE exists there is no cloud, and it grows. With
--evict the oldest of one stream gives way to what is new.

One line a fact, said after the call returned (`acking`, `releasing`: before it, what may go):

    epoch EPOCH                          the store is open
    appended STREAM FIRST DIGEST...      records FIRST.. are held, each with its digest
    taken STREAM FIRST DIGEST...         the same, but volatile: only a stricter append behind them
                                         makes them safe
    acking STREAM FIRST LAST             the cloud is about to acknowledge these
    acked STREAM FIRST LAST MARK         they are gone, and settled up to MARK
    releasing STREAM NEXT                raw audio before NEXT is about to be dropped as processed
    released STREAM NEXT                 it is gone
    refused STREAM                       a stretch of sound was counted as dropped
    failed CALL ERROR                    a typed error; the same work is tried again
    log TEXT                             what the agent would have in its log
"""

import argparse
import asyncio
import ctypes
import hashlib
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.clock import Clock
from agent.config import Store as Settings
from agent.config import StreamRule
from agent.errors import StoreError, StoreFull
from agent.records import Position, Range, RecordType, Segment, raw_stream, segments_stream
from agent.store.blobs import CHUNK_BYTES_MAX
from agent.store.drafts import Draft, Drafted
from agent.store.intake import Durability, New, Receipt
from agent.store.store import Store
from tests.store.faults import tripwire

EVICTED = "e"
STREAMS = ["a", "b", EVICTED]
VOLATILE = "v"
RULES = [StreamRule(match=VOLATILE, durability="volatile")]
BOUND = StreamRule(match=EVICTED, bytes_max=65_536)
SOURCES = ["mic", "file"]
HELD_BYTES_MAX = 4 << 20  # with a cloud, appends wait for it
T = TypeVar("T")


class Body(msgspec.Struct):
    """The body of an appended record: the call it came in, its place there, its blob's digest."""

    call: str
    place: int
    of: int
    blob: str


def digest(body: bytes, blob: bytes) -> str:
    """What a record is known by."""
    return hashlib.sha256(len(body).to_bytes(4, "big") + body + blob).hexdigest()[:16]


def sound(name: str, offset: int, samples: int) -> bytes:
    """The PCM of a stretch of a take: the same for whoever asks."""
    return random.Random(f"{name}:{offset}").randbytes(2 * samples)


def say(*words: object) -> None:
    print(*words, flush=True)


async def insist(call: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until it works; only the store's typed errors are expected."""
    while True:
        try:
            return await attempt()
        except StoreError as error:
            say("failed", call, type(error).__name__, error)
            await asyncio.sleep(0.005)


def _blob(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 0, 1, 3_000, 70_000]))


class Cloud:
    """Whether somebody takes records off us."""

    def __init__(self, store: Store, offline: Path) -> None:
        self._store = store
        self._offline = offline

    def there(self) -> bool:
        return not self._offline.exists()

    async def keeps_up(self) -> None:
        """Wait while a cloud that is there has much to fetch."""
        while self.there() and await self._held() > HELD_BYTES_MAX:
            await asyncio.sleep(0.005)

    async def _held(self) -> int:
        return await insist("used", self._store.used_bytes)


async def append(
    store: Store, cloud: Cloud, chance: random.Random, who: str, durability: Durability
) -> None:
    """Calls of one to five records each, to either stream; volatile ones to their own.

    Of those each twentieth is a group's, for what comes after it to lean on.
    """
    loose = durability is Durability.VOLATILE
    for number in range(10**9):
        await cloud.keeps_up()
        if loose:
            durability = Durability.VOLATILE if chance.random() < 0.95 else Durability.GROUP
            await asyncio.sleep(0.001)
        stream, count = chance.choice([VOLATILE] if loose else STREAMS), chance.randint(1, 5)
        blobs = [_blob(chance) for _ in range(count)]
        bodies = [
            msgspec.json.encode(Body(f"{who}:{number}", i, count, digest(b"", blob)))
            for i, blob in enumerate(blobs)
        ]
        new = [New(RecordType.SEGMENT, *pair) for pair in zip(bodies, blobs, strict=True)]

        async def attempt(
            stream: str = stream, new: list[New] = new, durability: Durability = durability
        ) -> Receipt:
            return await store.intake.append(stream, new, durability)

        receipt = await insist("append", attempt)
        word = "taken" if receipt.durability is Durability.VOLATILE else "appended"
        say(word, stream, receipt.first, *(digest(one.body, one.blob) for one in new))


async def record(store: Store, cloud: Cloud, chance: random.Random, who: str, source: str) -> None:
    """Sound into the spool, now and then made a segment of; this task alone writes its streams."""
    name = f"{who}.wav"
    take = await insist("begin", lambda: store.spool.begin(source, name, who))
    stream = raw_stream(source)
    balance = (await store.ledger.balances()).get(stream)
    seq = balance.produced if balance else 0
    while True:
        await cloud.keeps_up()
        pcm = sound(name, take.samples, chance.choice([1_000, 8_000, 16_000]))
        try:
            taken = await store.spool.accept(take, pcm)
        except StoreError as error:
            say("failed", "accept", type(error).__name__, error)
            if isinstance(error, StoreFull) and chance.random() < 0.2:
                await insist("refuse", lambda: store.spool.refuse(source, "full"))
                seq += 1
                say("refused", stream)
            await asyncio.sleep(0.005)
            continue
        seq += 1
        ((_, raw, _, kept),) = await insist("read", lambda s=seq: store.spool.waiting(source, s, 1))
        assert raw is not None
        assert (raw.offset, kept) == (take.samples, pcm)
        say("appended", stream, seq, digest(msgspec.json.encode(raw), pcm))
        take = taken
        if chance.random() < 0.3:
            next_seq = chance.randint(max(1, seq - 4), seq + 1)
            await cut_segment(store, chance, source, Position(take.id, 0, next_seq=next_seq))


async def cut_segment(store: Store, chance: random.Random, source: str, to: Position) -> None:
    """Keep up to two segments, one of them long, and let go of the raw audio before them."""
    found, said = [], []
    for i in range(chance.randint(0, 2)):
        flac = chance.randbytes(chance.choice([10, 100_000] if i else [10, 100_000, 300_000]))
        sha = hashlib.sha256(flac).hexdigest()
        name = f"{chance.getrandbits(64):x}/{i}"
        body = Segment(name, source, to.take, name, 0, 1, 1.0, 0, "m", "CPU", sha, len(flac))
        kept = await draft(store, chance, source, flac) if len(flac) > 200_000 else flac
        said.append(digest(msgspec.json.encode(body), flac))
        found.append((body, kept))
    say("releasing", raw_stream(source), to.next_seq)
    seqs = await insist("keep", lambda: store.spool.keep(source, found, to, "segments"))
    if seqs:
        say("appended", segments_stream(source), seqs[0], *said)
    say("released", raw_stream(source), to.next_seq)


async def draft(store: Store, chance: random.Random, source: str, flac: bytes) -> Drafted:
    """A FLAC that comes in while its segment is open, after one that was forgotten in the end."""
    piece, drafts = CHUNK_BYTES_MAX, store.spool.drafts
    if chance.random() < 0.3:
        await insist("draft", lambda: drafts.extend(Draft(source), flac[:piece]))
        await insist("forget", lambda: drafts.forget(source))
    grown, at = Draft(source), piece
    while len(flac) - at >= piece:
        more = flac[at : at + piece * chance.randint(1, (len(flac) - at) // piece)]
        grown = await insist("draft", lambda d=grown, m=more: drafts.extend(d, m))
        at += len(more)
    return Drafted(grown, flac[:piece], flac[at:])


async def drain(store: Store, cloud: Cloud, chance: random.Random) -> None:
    """The uplink and its cloud: lease, read the blobs, acknowledge some of it, or lose the link."""
    while True:
        batch = await insist("lease", lambda: store.outbox.lease(chance.randint(1, 60), 10**6))
        if batch is None or not cloud.there() or chance.random() < 0.1:
            store.outbox.rewind()
            await asyncio.sleep(0.002)
            continue
        for one in batch.records:
            blob = await insist("blob", lambda r=one: store.outbox.blob(r, 0, r.blob_bytes))
            assert len(blob) == one.blob_bytes
        last = chance.randint(batch.span.first, batch.span.last)
        span = Range(batch.span.first, last)
        say("acking", batch.stream, *(span.first, span.last))
        settled = await insist(
            "ack", lambda b=batch, s=span: store.outbox.acknowledge((store.epoch, b.stream), [s])
        )
        say("acked", batch.stream, span.first, span.last, settled.mark)


async def main(given: argparse.Namespace) -> None:
    settings = Settings(
        path=str(given.folder / "s.db"),
        streams=[*RULES, BOUND] if given.evict else RULES,
        when_full="evict" if given.evict else "refuse",
        volatile_s=0.1,
    )
    store = Store(settings, Clock())
    store._database._file._opening.synchronous = given.synchronous
    cloud = Cloud(store, given.offline)

    def chance(who: str) -> random.Random:
        return random.Random(f"{given.seed}:{who}")

    async with store:
        say("epoch", store.epoch)
        classes = [Durability.SYNC, *[Durability.GROUP] * 3, *[Durability.VOLATILE] * 2]
        works = [
            drain(store, cloud, chance("drain")),
            *(record(store, cloud, chance(s), f"{given.seed}:{s}", s) for s in SOURCES),
            *(
                append(store, cloud, chance(str(i)), f"{given.seed}:{i}", durability)
                for i, durability in enumerate(classes)
            ),
        ]
        await asyncio.gather(*works)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it dies with the test
    logging.basicConfig(format="log %(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed")
    parser.add_argument("--synchronous", default="FULL")
    parser.add_argument("--evict", action="store_true")
    parser.add_argument("--kill", default="")
    parser.add_argument("--offline", type=Path, default=Path("/nonexistent"))
    given = parser.parse_args()
    if given.kill:
        point, _, times = given.kill.partition(":")
        tripwire.install(point, int(times))
    asyncio.run(main(given))
