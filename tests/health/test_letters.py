"""Dead letters of the link are said as long as the store holds them, after a restart too."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.health import letters
from agent.health.conditions import Condition, Conditions
from agent.health.letters import Letters
from agent.records import Range, RecordType
from agent.store.intake import New
from agent.store.outbox import Buried
from agent.store.store import Store
from tests.outside import DEADLINE_S


def test_each_stream_has_one_condition_until_nothing_of_it_is_buried() -> None:
    conditions = Conditions(Clock())
    told = Letters(none, asyncio.Event(), conditions)
    conditions.hold("dead_letters", "mic", "warning", "a source's own", "")
    told.tell([Buried(("e", "a"), 1, 5, "poison"), Buried(("old", "a"), 2, 9, "too large")])
    assert said(conditions) == {
        "a": "3 records are held as dead letters of the link; the last, #9: too large",
        "mic": "a source's own",
    }
    told.tell([Buried(("e", "a"), 1, 5, "poison"), Buried(("e", "b"), 1, 1, "why")])
    assert (
        said(conditions)["a"]
        == "1 record is held as a dead letter of the link; the last, #5: poison"
    )
    told.tell([])
    assert said(conditions) == {"mic": "a source's own"}


async def test_it_follows_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "LOOK_S", 0.01)
    settings = config.Store(path=str(tmp_path / "s.db"))
    async with Store(settings, Clock()) as store, following(store) as conditions:
        name = (store.epoch, "a")
        await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")] * 9)
        await store.outbox.bury_span(name, Range(3, 4), "poison")
        await soon(lambda: "2 records" in said(conditions).get("a", ""), "it is said")
    async with Store(settings, Clock()) as store, following(store) as conditions:
        await soon(lambda: "#4: poison" in said(conditions).get("a", ""), "it is said again")
        await store.decisions.retry(name, [4])
        await soon(lambda: "#3: poison" in said(conditions).get("a", ""), "one is sent again")
        await store.decisions.drop(name, Range(3, 3))
        await soon(lambda: not said(conditions), "the other is given up")
        monkeypatch.setattr(letters, "LOOK_S", 2 * DEADLINE_S)
        looks = list[int]()
        tell = Letters.tell

        def seen(self: Letters, buried: list[Buried]) -> None:
            looks.append(len(buried))
            tell(self, buried)

        monkeypatch.setattr(Letters, "tell", seen)
        await soon(lambda: looks, "it looked, and does so no more by itself")
        await store.outbox.bury(name, 4, "again")
        await soon(lambda: "#4: again" in said(conditions).get("a", ""), "it is said at once")


@asynccontextmanager
async def following(store: Store) -> AsyncIterator[Conditions]:
    conditions = Conditions(Clock())
    followed = Letters(store.outbox.buried, store.outbox.more_buried, conditions)
    task = asyncio.create_task(followed.run())
    try:
        yield conditions
    finally:
        task.cancel()
        await asyncio.wait([task])


async def none() -> list[Buried]:
    return []


def said(conditions: Conditions) -> dict[str, str]:
    found: list[Condition] = conditions.all()
    return {one.subject: one.cause for one in found}


async def soon(question: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0.01)
