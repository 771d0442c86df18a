"""How a worker process begins and ends, and how what it says is taken apart."""

import asyncio
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from agent.inference import wire
from agent.inference.catalog import Catalog
from agent.inference.domains.instance import Instance, setup_of
from agent.inference.domains.process import Frames, named, spawned
from agent.inference.domains.zygote import Zygote
from agent.tasks import through
from bench.unconfined import Unconfined
from tests.inference.domains.bed import (
    CLOCK,
    DEADLINE_S,
    LONG,
    SEED,
    descriptors,
    nothing_left,
    repository,
    rules,
    within,
    workers,
)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Only so many more may be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("more", range(6))
async def test_a_start_that_fails_leaves_nothing(more: int) -> None:
    async with Zygote() as zygote:
        held = descriptors()
        with few_descriptors(more), pytest.raises(OSError):
            await spawned(zygote, lambda *_: None, lambda _: None, 1 << 20)
        assert len(descriptors()) == len(held), (held, descriptors())
        assert workers() == []


@pytest.mark.parametrize("more", range(9))
async def test_so_does_one_that_would_be_the_first(more: int) -> None:
    held = descriptors()
    with few_descriptors(more), pytest.raises(OSError):
        await spawned(Zygote(), lambda *_: None, lambda _: None, 1 << 20)
    assert len(descriptors()) == len(held), (held, descriptors())
    assert workers() == []


async def test_a_worker_that_is_not_wanted_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.inference.domains.process.STOP_TIMEOUT_S", DEADLINE_S)
    with nothing_left():
        async with Zygote() as zygote:
            process = await spawned(zygote, lambda *_: None, lambda _: None, 1 << 20)
            assert workers() == [process.pid]
            await within(process.end())
            assert named(await process.ended()) == "exit status 0"
            process.withdraw(1)  # too late, and no fault


async def test_an_instance_may_be_cancelled_at_any_moment(tmp_path: Path) -> None:
    """Twice, too: nothing is left, and its owner is told."""
    chance = random.Random(SEED)
    model = Catalog(repository(tmp_path)).verified("first")
    settings, owner = rules("first"), Mock()
    setup = setup_of([model], settings, 1)
    with nothing_left():
        async with Zygote() as zygote:
            parts = (owner, CLOCK, Unconfined(), zygote)
            for turn in range(60 if LONG else 6):
                one = Instance(setup, {"first": "first/1"}, settings, *parts)
                task = asyncio.create_task(one.run())
                for _ in range(chance.choice([0, 1, 2, 3, 5, 8])):
                    await asyncio.sleep(0)
                if turn % 3 == 0:
                    await asyncio.sleep(chance.random() * 0.5)
                for _ in range(chance.choice([1, 2])):
                    task.cancel()
                    await asyncio.sleep(0)
                with suppress(asyncio.CancelledError):
                    await task
                assert workers() == []
        owner.went.assert_called()


async def test_what_is_to_be_done_to_its_end_is() -> None:
    done = asyncio.Event()

    async def work() -> str:
        await asyncio.sleep(0.01)
        done.set()
        return "done"

    assert await through(work()) == "done"
    done.clear()
    task = asyncio.create_task(through(work()))
    await asyncio.sleep(0)  # it begins
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert done.is_set()
    assert task.cancelled()


MESSAGES = st.lists(
    st.tuples(st.binary(max_size=40), st.sampled_from([0, 1, 100, 70_000, 140_000])), max_size=8
)


@given(MESSAGES, st.lists(st.integers(1000, 90_000), min_size=1, max_size=20))
def test_messages_come_out_as_they_went_in_whatever_pieces_they_come_in(
    messages: list[tuple[bytes, int]], pieces: list[int]
) -> None:
    heard: list[tuple[bytes, bytes]] = []
    frames = Frames(lambda head, body: heard.append((head, bytes(body))), lambda _: None)
    sent = [(head, os.urandom(size)) for head, size in messages]
    prefix = wire._LENGTHS
    line = b"".join(prefix.pack(len(h), len(b)) + h + b for h, b in sent)
    turn = 0
    while line:
        room = frames.get_buffer(-1)
        size = min(len(room), len(line), pieces[turn % len(pieces)])
        room[:size] = line[:size]
        frames.buffer_updated(size)
        line, turn = line[size:], turn + 1
    assert heard == sent


def test_a_message_beyond_the_bounds_ends_the_connection() -> None:
    ended: list[str] = []
    frames = Frames(lambda *_: pytest.fail("nothing was whole"), ended.append)
    transport: Any = Mock()
    frames.connection_made(transport)
    prefix = wire._LENGTHS.pack(1 << 31, 1 << 31)
    frames.get_buffer(-1)[: len(prefix)] = prefix
    frames.buffer_updated(len(prefix))
    transport.abort.assert_called_once()
    frames.connection_lost(None)
    assert "beyond the bounds" in ended[0]


@pytest.mark.parametrize(
    ("status", "said"), [(0, "exit status 0"), (-9, "signal SIGKILL"), (-40, "signal 40")]
)
def test_every_end_of_a_process_has_a_name(status: int, said: str) -> None:
    assert named(status) == said


class Deadly(Unconfined):
    """Kills what it is to hold, before that has heard anything."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def admit(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await self.gone.wait()


def test_a_worker_may_die_before_it_is_told_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Catalog(repository(tmp_path)).verified("first")
    settings, told = rules("first"), Frames.connection_lost
    setup = setup_of([model], settings, 1)

    async def started() -> str:
        cell = Deadly()

        def lost(self: Frames, exc: Exception | None) -> None:
            told(self, exc)
            cell.gone.set()

        monkeypatch.setattr(Frames, "connection_lost", lost)
        async with Zygote() as zygote, asyncio.timeout(DEADLINE_S):
            parts = (Mock(), CLOCK, cell, zygote)
            return await Instance(setup, {"first": "first/1"}, settings, *parts).run()

    # The agent's own loop: another one forgives what is sent too late.
    assert uvloop.run(started()) == "its process ended with signal SIGKILL before it was ready"
    assert workers() == []
