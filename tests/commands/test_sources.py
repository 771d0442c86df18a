"""Whom an order may have the device ask: from afar none but the configured; by a real listener."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.commands.verb import Verb
from agent.commands.verbs.agent import AgentVerbs
from agent.commands.verbs.models import ModelVerbs
from agent.commands.verbs.updates import UpdateVerbs
from agent.protocol.commands import Door
from agent.updates.models import Models
from agent.updates.source import foreign
from tests.commands.rig import Rig, rig
from tests.updates.bed import TARGET, Server, Shop, content, serving

OURS = "http://updates.example/fleet"
URLS = [f"{OURS}/", "mqtt:", "file:///media/stick/repository"]
ORDERS: dict[str, dict[str, Any]] = {
    "updates.check": {},
    "updates.fetch": {"target": TARGET},
    "model.install": {"target": TARGET},
    "agent.update": {"target": TARGET},
}
FAR: tuple[Door, ...] = ("mqtt", "twin", "plant")


def verbs(folder: Path, shop: Shop) -> Iterable[Verb[Any]]:
    """Those that fetch, as the agent has them; nothing of an update is done behind the fetch."""
    fetcher = content(folder, shop, *URLS, tries_max=1)
    nobody: Any = None
    models = Models(nobody, nobody, nobody, nobody, fetcher)
    yield from UpdateVerbs(fetcher, 60.0, 60.0).verbs()
    yield from ModelVerbs(models, nobody).verbs()
    yield from AgentVerbs(nobody, fetcher).verbs()


@asynccontextmanager
async def site(folder: Path, **more: Any) -> AsyncIterator[tuple[Rig, Server]]:
    """A desk that takes them, and somebody else in the network that the device stands in."""
    shop = Shop(folder / "shop")
    async with rig(folder, **more) as one, serving(folder / "nothing") as other:
        one.desk.catalogue._verbs.update({v.name: v for v in verbs(folder / "device", shop)})
        yield one, other


@pytest.mark.parametrize("door", FAR)
async def test_from_afar_nobody_else_is_asked(tmp_path: Path, door: Door) -> None:
    async with site(tmp_path) as (one, other):
        for name, args in ORDERS.items():
            for source in (other.url, f"{OURS}.evil/", "/etc", "file:///media/stick"):
                if name.startswith("updates.") or source == other.url:
                    said = await one.order(name, door=door, args={**args, "source": source})
                    assert (said.state, said.reason) == ("refused", "not_allowed"), (name, source)
                    assert source.rstrip("/") in said.message
                    assert "updates.urls" in said.hint
        assert not other.asked
        kept = await one.store.journal.refusals(100)
        assert {row.reason for row in kept} == {"not_allowed"}
        assert await one.store.journal.page(None, 10) == []


async def test_the_configured_ones_are_taken_from_afar_however_they_are_written(
    tmp_path: Path,
) -> None:
    async with site(tmp_path, run=False) as (one, _):
        sources = ["", OURS, f"{OURS}/", "mqtt:", "/media/stick/repository", URLS[2]]
        for i, source in enumerate(sources):
            for name, args in ORDERS.items():
                args = {**args, "source": source}
                said = await one.order(name, f"{name}.{i}", door="mqtt", args=args)
                assert said.state == "accepted", said.message


async def test_before_the_device_an_administrator_names_any_and_others_a_folder(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as (one, other):
        args = {"source": other.url}
        said = await one.order("updates.check", args=args, scopes={"operate"})
        assert (said.state, said.reason) == ("refused", "not_allowed")
        assert "scope admin" in said.message
        assert not other.asked
        stick = {"source": str(tmp_path / "stick")}
        said = await one.order("updates.check", "stick", args=stick, scopes={"operate"})
        assert said.state == "accepted"
        rights: dict[Door, Any] = {"http": {"operate", "admin"}, "bundle": None}
        for door, scopes in rights.items():
            await one.order("updates.check", door, door, args=args, scopes=scopes)
            ended = await one.ended(door)
            assert "unreachable" in ended.message
            assert other.asked, door
            other.asked.clear()


async def test_what_was_taken_before_a_restart_is_done_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as other:
        async with rig(tmp_path, run=False) as one:
            shop = Shop(tmp_path / "shop")
            found = {v.name: v for v in verbs(tmp_path / "device", shop)}
            one.desk.catalogue._verbs.update(found)
            args = {"source": other.url}
            for door in ("http", "mqtt"):
                await one.order("updates.check", door, door, args=args)
        async with rig(tmp_path, run=False) as one:
            one.desk.catalogue._verbs.update(found)
            task = asyncio.create_task(one.desk.run())
            assert "unreachable" in (await one.ended("http")).message
            assert other.asked
            assert [row.id for row in await one.store.journal.page(None, 10)] == ["http"]
            task.cancel()
            await asyncio.wait([task])


@pytest.mark.parametrize(
    ("named", "foreigner"),
    [
        ("", False),
        ("http://a/b/", False),
        ("http://a/b", False),
        ("http://a", True),
        ("http://a/b/c", True),
        ("https://a/b", True),
        ("http://a:80/b", True),
        ("/s", False),
        ("file:///s/", False),
        ("/s/../etc", True),
        ("mqtt:", True),
    ],
)
def test_foreign(named: str, foreigner: bool) -> None:
    assert foreign(named, ["http://a/b", "file:///s"]) == (named if foreigner else "")
