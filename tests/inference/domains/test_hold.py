"""Domains that are held: nothing starts, nothing changes; and then all of it does."""

import asyncio
from pathlib import Path

import pytest

from agent.errors import BusyError, NotNow
from tests.inference.domains.family import workers
from tests.inference.domains.rig import put, rules, running, until


async def test_what_is_held_starts_nothing_and_says_why_until_it_is_lifted(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, 1)
    put(root, 2)
    async with running(root, held="the roof is on fire") as rig:
        domain = rig.domains.named("d")
        await until(lambda: "fire" in domain.cause, "it says so")
        assert (domain.hint, rig.told[-1]) == ("lift it", "d")
        with pytest.raises(BusyError, match="fire"):
            await rig.ask()
        for order in (
            rig.domains.load("m", 1),
            rig.domains.unload("m"),
            rig.domains.roll_back("m"),
            rig.domains.apply({"d": rules(), "e": rules("other")}),
        ):
            with pytest.raises(NotNow, match="fire") as error:
                await order
            assert error.value.hint == "lift it"
        domain.restart()
        await asyncio.sleep(0)
        assert not workers()
        rig.hold.lift()
        await rig.ready()
        assert await rig.version() == 2
        await rig.domains.load("m", 1)
        assert await rig.version() == 1
