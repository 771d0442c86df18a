"""The outbox without an agent: read in place, under the store's own lock.

The one file of the command, beside run.py, that sees the store; it is loaded only when no agent
answers.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.clock import Clock
from agent.config import Config
from agent.errors import StoreLocked
from agent.records import Range
from agent.store.bounds import Bounds
from agent.store.inventory import Inventory
from agent.store.slices import Slices
from agent.store.still import Still
from agent.store.verify import Verify

Progress = Callable[[int, int], None]
TOLD_S = 0.2


def streams(settings: Config) -> dict[str, Any]:
    """What GET /api/v1/outbox answers. Raises StoreLocked, StoreError, NotThere."""
    with _held(settings) as still:
        clock = Clock()
        rule = Bounds(settings.store, clock, _nothing_is_leased).rule
        inventory = Inventory(Slices(still), clock, rule, _nothing_is_leased)
        found = asyncio.run(inventory.streams())
        return {"epoch": still.epoch, "streams": msgspec.to_builtins(found)}


def verify(settings: Config, *, deep: bool, tell: Progress) -> dict[str, Any]:
    """The report of a verify; `tell` gets rows counted and in all. Raises as `streams` does."""
    with _held(settings) as still:
        return asyncio.run(_verify(Verify(Slices(still), deep=deep), tell))


async def _verify(verify: Verify, tell: Progress) -> dict[str, Any]:
    async def progress() -> None:
        while True:
            tell(verify.counted, verify.total)
            await asyncio.sleep(TOLD_S)

    telling = asyncio.create_task(progress())
    try:
        document: dict[str, Any] = msgspec.to_builtins(await verify.run())
        return document
    finally:
        telling.cancel()


@contextmanager
def _held(settings: Config) -> Iterator[Still]:
    still = Still(Path(settings.store.path))
    try:
        still.__enter__()
    except StoreLocked as error:
        raise StoreLocked(
            f"{settings.store.path}: an agent holds this store, but none answers on "
            f"{settings.api.socket}",
            "ask it with the configuration it runs on (--config)",
        ) from error
    try:
        yield still
    finally:
        still.__exit__()


def _nothing_is_leased(_epoch: str, _stream: str) -> list[Range]:
    return []
