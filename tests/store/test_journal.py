"""Where the answer to a command is wanted, and whether somebody has it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.store.journal import End, Journal, New, Untold
from agent.store.store import Store


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as store:
        yield store.journal


async def ended(journal: Journal, door: str, reply: bytes | None = None) -> int:
    new = New(id=door, digest=b"d", name="write", args=b"{}", door=door, reply=reply)
    entry, _ = await journal.accept(new)
    await journal.end(entry.number, End(state="succeeded"))
    return entry.number


async def left(journal: Journal, of: Untold) -> list[int]:
    return [one.number for one in (await journal.untold(10, of=of))[0]]


async def test_what_is_told_again_elsewhere_is_not_had_by_what_was_under_way(
    journal: Journal,
) -> None:
    one = await ended(journal, "mqtt", b"a")
    await journal.wanted_at(one, b"b")  # between the look at it and its answer at a
    await journal.answering(one, b"a", refusal=False)
    await journal.told([one])
    assert await left(journal, "replies") == [one]
    await journal.answering(one, b"b", refusal=False)
    assert (await left(journal, "replies"), await left(journal, "asked")) == ([], [one])
    await journal.told([one])
    assert await left(journal, "all") == []
    await journal.wanted_at(one, b"c")
    assert await left(journal, "replies") == [one]


async def test_whoever_asks_over_the_link_for_what_another_door_ordered_waits_for_it(
    journal: Journal,
) -> None:
    one, two = await ended(journal, "http"), await ended(journal, "mqtt")
    assert (await left(journal, "others"), await left(journal, "asked")) == ([one], [two])
    await journal.wanted_at(one, b"a")
    assert (await left(journal, "others"), await left(journal, "asked")) == ([], [one, two])
