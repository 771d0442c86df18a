"""A process that no signal ends: its domain goes on without it, and so does the agent's end."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog
from agent.inference.domains import zygote
from agent.inference.domains.domain import Domain, Parts
from bench.unconfined import Unconfined
from tests.host.grouped import freezing, needs_group
from tests.inference.domains.bed import (
    answered,
    instances,
    nothing_left,
    numbers,
    repository,
    rules,
    running,
    until,
    within,
    workers,
)
from tests.outside import alive


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_group("freezer")
    monkeypatch.setattr(zygote, "KILLED_S", 0.3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path)


@pytest.fixture
def freezer() -> Iterator[ExitStack]:
    """What is frozen thaws at the end of the test, and dies."""
    with ExitStack() as stack:
        yield stack


async def test_another_process_takes_its_place_and_the_call_is_made_again(
    root: Path, freezer: ExitStack
) -> None:
    with nothing_left():
        async with running(root, one=rules("first", call_timeout_s=0.5)) as domains:
            one = domains.named("one")
            (stuck,) = instances(one)
            assert stuck.pid
            freezer.enter_context(freezing(stuck.pid))
            assert await answered(one, numbers("first", 3.0)) == numbers("first", 3.0).body[0]
            assert stuck not in instances(one)
            assert alive(stuck.pid), "nothing ends it"
            freezer.close()
            await until(lambda: not alive(stuck.pid or 0), "the kernel lets go of it")


async def test_it_holds_up_no_end(root: Path, freezer: ExitStack) -> None:
    model, clock, found = Catalog(root).newest("first"), Clock(), zygote.Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), found, 1)
    settings = rules("first", call_timeout_s=600.0)
    async with found, Domain("it", settings, Parts(lambda: {"first": model}, *ways)) as domain:
        task = asyncio.create_task(domain.run())
        await within(domain.ready.wait())
        stuck = domain.pid or 0
        freezer.enter_context(freezing(stuck))
        task.cancel()
    assert alive(stuck), "nothing ends it"
    freezer.close()
    await until(lambda: not workers(), "the kernel lets go of it")


async def test_so_many_and_no_more_are_left_behind(
    root: Path, freezer: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "STUCK_MAX", 1)
    with nothing_left():
        async with running(root, one=rules("first", call_timeout_s=0.5)) as domains:
            one = domains.named("one")
            freezer.enter_context(freezing(instances(one)[0].pid or 0))
            await until(lambda: "are still there" in one.cause, "none is started")
            freezer.close()
            await within(one.ready.wait())
