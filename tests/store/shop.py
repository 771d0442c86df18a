"""A small store with something of everything in it."""

from pathlib import Path

from agent import config
from agent.clock import Clock
from agent.records import Position, Range, RecordType
from agent.store.intake import New
from agent.store.store import Store

RAW = New(RecordType.RAW, b'{"n": 1}', bytes(1000))
LARGE = New(RecordType.RAW, b'{"n": 2}', bytes(70_000))  # its blob has two pieces
PCM = bytes(20_000)


def made(folder: Path, **settings: object) -> Store:
    return Store(config.Store(path=str(folder / "s.db"), **settings), Clock())  # type: ignore[arg-type]


async def stocked(store: Store) -> None:
    """Stream a: 1-20, of which 1-4 are delivered, 6 is dropped; x.raw: 5, 1-3 processed, 4 dead."""
    await store.intake.append("a", [RAW] * 18 + [LARGE] * 2)
    await store.outbox.lease(4, 1 << 20)
    await store.outbox.acknowledge((store.epoch, "a"), [Range(1, 4)])
    await store.decisions.drop((store.epoch, "a"), Range(6, 6))
    take = await store.spool.begin("x", "a.wav", "1")
    for _ in range(5):
        take = await store.spool.accept(take, PCM)
    dead = (4, "it was too loud")
    await store.spool.keep("x", [], Position(take.id, 0, next_seq=5), "segments", dead)
