"""A candidate whose process goes before it has shown anything."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.config import Instances
from agent.errors import CallLost, ModelError
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.candidate import Candidate, Refused
from agent.inference.domains.pool import Pool

DEADLINE_S = 90.0


class Gone:
    """In the place of an instance that is about to end."""

    ready = False

    def __init__(self) -> None:
        self.loaded = {"m": wire.Loaded("CPU", 0.0)}


class Fleeting:
    """In the place of a pool: its instance is ready no more before anybody has looked."""

    def __init__(self, *there: object) -> None:
        self.ready = list(there)
        self.models: dict[str, Any] = {}
        self.cause = "its process ended with signal SIGSEGV"
        self.fresh, self.failed = asyncio.Event(), asyncio.Event()

    def resize(self, *_: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, self.fresh.set)
        loop.call_later(0.05, self.failed.set)


async def test_who_goes_the_moment_it_came_is_refused_with_its_cause() -> None:
    async def prove(*_: object) -> None:
        raise AssertionError("there is nobody to ask")

    candidate = Candidate(cast(Pool, Fleeting()), {}, prove)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Refused, match="SIGSEGV"):
            await candidate.prove(Instances(), whole=True)


async def test_who_goes_between_two_questions_is_refused_with_its_cause() -> None:
    async def prove(_: Model, __: wire.Loaded, ask: Any) -> None:
        try:
            await ask(SimpleNamespace())
        except CallLost as error:
            raise ModelError(f"it is not admitted: {error}") from error

    model = cast(Model, SimpleNamespace(label="m/2@0"))
    candidate = Candidate(cast(Pool, Fleeting(Gone())), {"m": model}, prove)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Refused, match="SIGSEGV") as caught:
            await candidate.prove(Instances(), whole=True)
    assert not caught.value.surely
